"""Which connection each client talks over, so that a lost connection tells at once whose requests nobody waits for."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import zmq

_WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED


class Peers:
    """Clients of a ROUTER socket by the file descriptor of their connection.

    on_gone: called with each client whose connection ended. on_accepted: called with the descriptor of each new
    connection. `monitor` becomes readable when there is something to tell.

    libzmq's thread waits while 1001 events are unread, and accepts no connection then.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_gone: Callable[[bytes], None],
        on_accepted: Callable[[int], None] = lambda descriptor: None,
    ) -> None:
        address = f"inproc://peers-{id(self)}"
        socket.monitor(address, _WATCHED)
        self.monitor = socket.context.socket(zmq.PAIR)
        # libzmq's own mark of 1000 is added.
        self.monitor.rcvhwm = 1
        self.monitor.connect(address)
        self._on_gone = on_gone
        self._on_accepted = on_accepted
        self._connection: dict[bytes, int] = {}
        self._clients: dict[int, set[bytes]] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._connection

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._connection)

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

    def descriptor(self, peer: bytes) -> int | None:
        """That of a client's connection, if it is known."""
        self.poll()
        return self._connection.get(peer)

    def poll(self) -> None:
        """Take in connections that have begun or ended."""
        while True:
            try:
                kind, descriptor = self._read(zmq.NOBLOCK)
            except zmq.Again:
                return
            if kind == zmq.EVENT_ACCEPTED:
                self._on_accepted(descriptor)
                continue
            for peer in self._clients.pop(descriptor, ()):
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
        """Read what is left and end; call when the socket has been closed, which waits for as long as it lingers.

        Ending the monitor before would hold the GIL and wait for libzmq's thread, which may wait for us to read.
        """
        while self._read()[0] != zmq.EVENT_MONITOR_STOPPED:
            pass
        self.monitor.close(linger=0)

    def _read(self, flags: int = 0) -> tuple[int, int]:
        """The next event and what it is about: of connections, the descriptor."""
        kind, value = struct.unpack("=Hi", self.monitor.recv_multipart(flags)[0])
        return kind, value
