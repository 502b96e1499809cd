"""Which connection each client talks over, so that a lost connection tells at once whose requests nobody waits for."""

from __future__ import annotations

from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message


class Peers:
    """Clients of a ROUTER socket by the file descriptor of their connection.

    on_gone: called with each client whose connection ended. `monitor` becomes readable when one has.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_gone: Callable[[bytes], None]) -> None:
        self.monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket = socket
        self._on_gone = on_gone
        self._connection: dict[bytes, int] = {}
        self._clients: dict[int, set[bytes]] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._connection

    def __len__(self) -> int:
        return len(self._connection)

    def add(self, peer: bytes, frame: zmq.Frame) -> None:
        """Note a client from a frame it sent.

        Ends are read first: the descriptor may be that of a connection that has ended, used again for this one.
        """
        self.poll()
        try:
            descriptor = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:
            # libzmq does not know it for every message of a connection that broke off in mid-handshake.
            return
        self._connection[peer] = descriptor
        self._clients.setdefault(descriptor, set()).add(peer)

    def poll(self) -> None:
        """Take in connections that have ended."""
        while True:
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            for peer in self._clients.pop(int(event["value"]), ()):
                del self._connection[peer]
                self._on_gone(peer)

    def forget(self, peer: bytes) -> None:
        """Drop a client that is known to be gone by other means."""
        descriptor = self._connection.pop(peer, None)
        if descriptor is not None:
            self._clients[descriptor].discard(peer)
            if not self._clients[descriptor]:
                del self._clients[descriptor]

    def close(self) -> None:
        """End the monitor; call before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
