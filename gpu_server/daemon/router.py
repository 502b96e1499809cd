"""The ROUTER socket: receives messages, sends replies, and never waits for a client that does not read."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from gpu_server import multipart
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.peers import Peers
from gpu_server.errors import EndpointError
from gpu_server.wire import MAX_REQUEST_HEADER_BYTES, Buffer, Limits

log = logging.getLogger(__name__)

Handle = Callable[[bytes, Sequence[bytes], bool], None]

DRAIN_CAP = 256
MAX_FRAMES = 40
"""Identity, delimiter, header and two frames for each of 16 tensors, and some to say that there are too many."""
RETRY_S = 0.005
SEND_HWM = 256
_UMASK_GROUP_ONLY = 0o117


class Router:
    """Bound socket plus what is queued for slow readers.

    on_gone: called with a peer whose connection is known to be lost or has been given up. listener_fd: a socket that
    listens at `endpoint` already, closed with this one.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        limits: Limits,
        metrics: Metrics,
        *,
        max_peer_bytes: int,
        on_gone: Callable[[bytes], None],
        listener_fd: int | None = None,
    ) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self._metrics = metrics
        self._max_peer_bytes = max_peer_bytes
        self._on_gone = on_gone
        self._max_bytes = limits.max_request_bytes + MAX_REQUEST_HEADER_BYTES
        self._unsent: dict[bytes, tuple[deque[list[Buffer]], int]] = {}
        self._configure(limits)
        if listener_fd is not None:
            self.socket.setsockopt(zmq.USE_FD, listener_fd)
        previous = os.umask(_UMASK_GROUP_ONLY)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.socket.close(linger=0)
            raise EndpointError(f"cannot bind {endpoint}: {zmq.strerror(error.errno or 0)}") from None
        finally:
            os.umask(previous)
        self.peers = Peers(self.socket, self._disconnected)

    def receive(self, handle: Handle) -> int:
        """Read up to `DRAIN_CAP` messages; returns how many there were, so that a full turn can be followed by another.

        `handle(peer, frames, whole)`: a message beyond the limits is cut and not whole.
        """
        for count in range(DRAIN_CAP):
            try:
                frames, last, whole = multipart.receive_with_last(self.socket, MAX_FRAMES, self._max_bytes)
            except zmq.Again:
                return count
            peer = frames[0]
            if peer not in self.peers:
                self.peers.add(peer, last)
            handle(peer, frames[1:], whole)
        return DRAIN_CAP

    def send(self, peer: bytes, frames: list[Buffer]) -> None:
        """Send a reply now, or keep it while the peer's pipe is full, up to `max_peer_bytes`."""
        if peer in self._unsent:
            self._keep(peer, frames)
            return
        try:
            multipart.send(self.socket, [peer, *frames])
        except zmq.Again:
            self._keep(peer, frames)
        except zmq.ZMQError as error:
            self._lost(peer, error)

    def flush(self) -> None:
        """Try again to send what slow readers left."""
        for peer in list(self._unsent):
            waiting, size = self._unsent[peer]
            try:
                while waiting:
                    multipart.send(self.socket, [peer, *waiting[0]])
                    size -= _size(waiting.popleft())
                del self._unsent[peer]
            except zmq.Again:
                self._unsent[peer] = (waiting, size)
            except zmq.ZMQError as error:
                self._lost(peer, error)

    def has_unsent(self) -> bool:
        """Whether `flush` has work; it should be called every `RETRY_S` then."""
        return bool(self._unsent)

    def close(self, linger_ms: int) -> None:
        """Close the socket, giving sent replies `linger_ms` to leave."""
        self.peers.close()
        self.socket.close(linger=linger_ms)

    def _configure(self, limits: Limits) -> None:
        socket = self.socket
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, limits.max_frame_bytes)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        socket.setsockopt(zmq.BACKLOG, 1024)
        socket.sndhwm = SEND_HWM
        socket.rcvhwm = 1000

    def _keep(self, peer: bytes, frames: list[Buffer]) -> None:
        waiting, size = self._unsent.setdefault(peer, (deque(), 0))
        size += _size(frames)
        if size > self._max_peer_bytes:
            del self._unsent[peer]
            self._metrics.dropped["peer_slow"] += len(waiting) + 1
            log.warning("client does not read its replies", extra={"peer": peer.hex(), "bytes": size})
            self._on_gone(peer)
            return
        waiting.append(frames)
        self._unsent[peer] = (waiting, size)

    def _lost(self, peer: bytes, error: zmq.ZMQError) -> None:
        if error.errno != zmq.EHOSTUNREACH:
            raise error
        self._metrics.dropped["peer_gone"] += 1
        self.peers.forget(peer)
        self._disconnected(peer)

    def _disconnected(self, peer: bytes) -> None:
        waiting, _ = self._unsent.pop(peer, (deque(), 0))
        self._metrics.dropped["peer_gone"] += len(waiting)
        self._on_gone(peer)


def _size(frames: list[Buffer]) -> int:
    return sum(len(frame) for frame in frames)
