"""The ROUTER socket: receives messages, sends replies, and never waits for a client that does not read."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from gpu_server import endpoint as endpoints
from gpu_server import multipart
from gpu_server.curve import FRAME_OVERHEAD
from gpu_server.daemon import zap
from gpu_server.daemon.descriptors import Gate
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.peers import Peers
from gpu_server.errors import EndpointError
from gpu_server.wire import FAREWELL_ANSWER, MAX_REQUEST_HEADER_BYTES, Buffer, Limits

log = logging.getLogger(__name__)

Handle = Callable[[bytes, Sequence[bytes], bool], None]

DRAIN_CAP = 256
BURST = 16
"""Replies that leave together: libzmq's thread wakes up once for them, and sends several with one system call."""
MAX_FRAMES = 40
"""Identity, delimiter, header and two frames for each of 16 tensors, and some to say that there are too many."""
RETRY_S = 0.005
QUIET_MS = 20
HAND_OVER_TURNS = 10
FAREWELL_S = 0.5
SEND_HWM = 256
LENT_BYTES = 1 << 16
"""Frames from this size on are lent to libzmq, which tells when they have left; of smaller ones a pipe holds little."""
_UMASK_GROUP_ONLY = 0o117


class Router:
    """Bound socket plus what is queued for slow readers.

    on_gone: called with a peer whose connection is known to be lost or has been given up. listener_fd: a socket that
    listens at `endpoint` already, closed with this one. secret_key: takes CURVE connections and no others; an
    `Authenticator` of the same context says whose.
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
        secret_key: bytes | None = None,
    ) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self._metrics = metrics
        self._max_peer_bytes = max_peer_bytes
        self._on_gone = on_gone
        self._max_bytes = limits.max_request_bytes + MAX_REQUEST_HEADER_BYTES
        self._ready: list[tuple[bytes, list[Buffer]]] = []
        self._unsent: dict[bytes, tuple[deque[list[Buffer]], int]] = {}
        self._lent: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}
        self._given_up: set[bytes] = set()
        self._drained = False
        self._configure(limits)
        if secret_key is not None:
            self._encrypt(secret_key, limits)
        self.socket.setsockopt(zmq.IPV6, endpoints.is_ipv6(endpoint))
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
        # The first lent frame starts pyzmq's thread that learns of its end: now, so that the daemon grows no more later.
        zmq.Frame(bytes(LENT_BYTES), track=True, copy=False)
        self._gate = Gate(self.socket.get_string(zmq.LAST_ENDPOINT), self._refused)
        self.peers = Peers(self.socket, self._disconnected, self._gate.accepted)

    def receive(self, handle: Handle) -> int:
        """Read up to `DRAIN_CAP` messages, so that others have their turn; returns how many there were.

        `handle(peer, frames, whole)`: a message beyond the limits is cut and not whole.
        """
        self._drained = False
        for count in range(DRAIN_CAP):
            try:
                frames, last, whole = multipart.receive_with_last(self.socket, MAX_FRAMES, self._max_bytes)
            except zmq.Again:
                self._drained = True
                return count
            peer = frames[0]
            if peer not in self.peers:
                self.peers.add(peer, last)
            handle(peer, frames[1:], whole)
        return DRAIN_CAP

    def has_input(self) -> bool:
        """Whether there is more to receive than the socket's descriptor tells of; to be asked before sleeping on that.

        It tells of what comes once a message was looked for in vain, unless a reply is sent in between.
        """
        if not self._drained:
            self._drained = not multipart.waits(self.socket)
        return not self._drained

    def send(self, peer: bytes, frames: list[Buffer]) -> None:
        """Send a reply with the next `flush`, or before it as soon as there are `BURST`."""
        self._ready.append((peer, frames))
        if len(self._ready) >= BURST:
            self._send_ready()

    def flush(self) -> None:
        """Send what is ready, and try again to send what slow readers left."""
        if self._ready:
            self._send_ready()
        if not self._unsent:
            return
        for peer in list(self._unsent):
            waiting, size = self._unsent[peer]
            try:
                while waiting:
                    self._send(peer, waiting[0])
                    size -= _size(waiting.popleft())
                del self._unsent[peer]
            except zmq.Again:
                self._unsent[peer] = (waiting, size)
            except zmq.ZMQError as error:
                self._lost(peer, error)

    def has_unsent(self) -> bool:
        """Whether slow readers have left something; `flush` should be called every `RETRY_S` then."""
        return bool(self._unsent)

    def hand_over(self, handle: Handle, farewell: list[Buffer]) -> None:
        """Take in what still comes, then say farewell and wait for the answers; `close` must follow.

        What a client has sent and got no reply to when the farewell arrives was never read, which it then knows. Its answer
        says that it has read all replies: libzmq drops what a client has not read when the connection ends. One that was
        given up before is told nothing: it misses replies.
        """
        for _ in range(HAND_OVER_TURNS):
            if not self.socket.poll(QUIET_MS):
                break
            self.receive(handle)
        silent, give_up = set(self.peers) - self._given_up, time.monotonic() + FAREWELL_S
        for peer in silent:
            self.send(peer, farewell)
        self.flush()
        while silent and time.monotonic() < give_up:
            self.flush()
            self.peers.poll()
            silent &= set(self.peers)
            if self.socket.poll(QUIET_MS):
                frames, last, _ = multipart.receive_with_last(self.socket, MAX_FRAMES, self._max_bytes)
                peer = frames[0]
                if tuple(frames[1:]) == FAREWELL_ANSWER:
                    silent.discard(peer)
                elif peer not in self.peers:
                    # It has connected since.
                    self.peers.add(peer, last)
                    self.send(peer, farewell)
                    silent.add(peer)
        self.flush()

    def close(self, linger_ms: int) -> None:
        """Close the socket, giving sent replies `linger_ms` to leave."""
        self.socket.close(linger=linger_ms)
        self.peers.close()

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

    def _encrypt(self, secret_key: bytes, limits: Limits) -> None:
        self.socket.curve_server, self.socket.curve_secretkey = 1, secret_key
        self.socket.zap_domain = zap.DOMAIN
        self.socket.setsockopt(zmq.MAXMSGSIZE, limits.max_frame_bytes + FRAME_OVERHEAD)

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, []
        for peer, frames in ready:
            if peer in self._given_up:
                self._metrics.dropped["peer_slow"] += 1
                continue
            if peer in self._unsent:
                self._keep(peer, frames)
                continue
            try:
                self._send(peer, frames)
            except zmq.Again:
                self._keep(peer, frames)
            except zmq.ZMQError as error:
                self._lost(peer, error)

    def _send(self, peer: bytes, frames: list[Buffer]) -> None:
        """Send a reply; raises zmq.Again while the peer's pipe is full or holds all that the peer may leave unread."""
        self._drained = False
        if max(map(len, frames)) < LENT_BYTES:
            multipart.send(self.socket, [peer, *frames])
            return
        in_pipe = self._in_pipe(peer)
        if in_pipe and in_pipe + _size(frames) > self._max_peer_bytes:
            raise zmq.Again
        # A copy: a reply may be a part of a batch's buffer, which nobody else needs any more.
        sent = [f if len(f) < LENT_BYTES else zmq.Frame(bytes(f), track=True, copy=False) for f in frames]
        multipart.send(self.socket, [peer, *sent], copy=False)
        # Not the frames themselves, which have left when nobody holds them.
        lent = [(f.tracker, len(f)) for f in sent if isinstance(f, zmq.Frame)]
        self._lent.setdefault(peer, deque()).extend(lent)

    def _in_pipe(self, peer: bytes) -> int:
        """Bytes of lent frames that have not left yet."""
        lent = self._lent.get(peer, deque())
        while lent and lent[0][0].done:
            lent.popleft()
        return sum(size for _, size in lent)

    def _keep(self, peer: bytes, frames: list[Buffer]) -> None:
        """Keep a reply while the peer's pipe is full; with what is in it, up to `max_peer_bytes`, but for one."""
        waiting, size = self._unsent.setdefault(peer, (deque(), 0))
        size += _size(frames)
        if waiting and size + self._in_pipe(peer) > self._max_peer_bytes:
            del self._unsent[peer]
            self._metrics.dropped["peer_slow"] += len(waiting) + 1
            log.warning("client does not read its replies", extra={"peer": peer.hex(), "bytes": size})
            self._give_up(peer)
            return
        # A copy: what a reply is a part of, a batch's answer, may be large or lie in memory that is lent.
        waiting.append([bytes(frame) for frame in frames])
        self._unsent[peer] = (waiting, size)

    def _give_up(self, peer: bytes) -> None:
        """End the connection of a client that misses replies from now on, so that it notices."""
        self._given_up.add(peer)
        self._on_gone(peer)
        descriptor = self.peers.descriptor(peer)
        if descriptor is not None:
            self._gate.hang_up(descriptor)

    def _lost(self, peer: bytes, error: zmq.ZMQError) -> None:
        if error.errno != zmq.EHOSTUNREACH:
            raise error
        self._metrics.dropped["peer_gone"] += 1
        self.peers.forget(peer)
        self._disconnected(peer)

    def _refused(self) -> None:
        self._metrics.dropped["peer_refused"] += 1

    def _disconnected(self, peer: bytes) -> None:
        self._given_up.discard(peer)
        self._lent.pop(peer, None)
        waiting, _ = self._unsent.pop(peer, (deque(), 0))
        self._metrics.dropped["peer_gone"] += len(waiting)
        self._on_gone(peer)


def _size(frames: list[Buffer]) -> int:
    return sum(len(frame) for frame in frames)
