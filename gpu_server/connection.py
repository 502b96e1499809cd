"""One DEALER socket per process, shared by its threads: a table of pending calls and the I/O thread that serves it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import socket as sockets
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from gpu_server import endpoint as endpoints
from gpu_server.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    RemoteError,
    Unavailable,
    from_wire,
)
from gpu_server.wire import VERSION, ReplyHeader, RequestHeader, Tensors, decode_reply, encode_request
from gpu_server.wire.tensor import Buffer

CONNECT_TIMEOUT_S = 1.0
DEADLINE_SLACK_S = 0.05
MAX_PENDING = 65_536
MAX_TIMEOUT_S = 86_400.0
_MIN_SWEEP = 1024
_serials = itertools.count()
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


@dataclass(slots=True)
class Reply:
    """A good answer: header and output tensors."""

    header: ReplyHeader
    outputs: Tensors


@dataclass(slots=True)
class _Call:
    future: Future[Reply]
    frames: list[Buffer]
    expires: float
    sent: bool = False


class Connection:
    """Sends requests and matches replies; every call ends by its deadline, whatever happens to the daemon.

    Must be used only in the process that made it. `late_replies` counts answers that came after their call had ended.
    `serial` is this connection's alone in its process; `generation` grows with each loss of the daemon.
    """

    def __init__(self, endpoint: str) -> None:
        endpoints.check(endpoint)
        self.endpoint = endpoint
        self.serial = next(_serials)
        self.generation = 0
        self.late_replies = 0
        self._zmq = _zmq_for_this_process()
        self._ids = itertools.count(1)
        self._calls: dict[bytes, _Call] = {}
        self._outbox: deque[bytes] = deque()
        self._cancels: deque[bytes] = deque()
        self._deadlines: list[tuple[float, bytes]] = []
        self._lock = threading.Lock()
        try:
            self._wake_read, self._wake_write = sockets.socketpair()
        except OSError as error:
            raise Unavailable(
                f"no connection can be made: {error.strerror}", {"endpoint": endpoint}
            ) from None
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._armed = False
        self._up = False
        self._checked = False
        self._closing = False
        self._down_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="gpu-server-client", daemon=True)
        self._thread.start()

    def submit(self, header: RequestHeader, inputs: Tensors | None, timeout_s: float) -> Future[Reply]:
        """Queue a request; its id and deadline are set here. The future ends with a Reply or a RemoteError.

        Raises Unavailable or EndpointForbidden at once when there is no socket to connect to.
        """
        if not (self._up and self._checked):
            endpoints.check_reachable(self.endpoint)
            self._checked = True
        if len(self._calls) >= MAX_PENDING:
            raise Overloaded(f"{MAX_PENDING} requests of this process are already pending")
        header.id = next(self._ids).to_bytes(8, "little")
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        header.deadline_ms = max(1, int(timeout_s * 1000))
        future: Future[Reply] = Future()
        expires = time.monotonic() + timeout_s + DEADLINE_SLACK_S
        try:
            call = _Call(future, encode_request(header, inputs), expires)
        except ProtocolError as error:
            raise InvalidRequest(str(error), error.details) from None
        with self._lock:
            if self._closing:
                raise Unavailable("the client is closed", {"endpoint": self.endpoint})
            self._calls[header.id] = call
            heapq.heappush(self._deadlines, (expires, header.id))
        self._outbox.append(header.id)
        future.add_done_callback(partial(self._on_done, header.id))
        self._wake()
        return future

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls: closed, or its I/O thread has met an error that it cannot go on from."""
        return self._closing

    def close(self) -> None:
        """End the I/O thread; pending calls fail with Unavailable."""
        with self._lock:
            self._closing = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def abandon(self) -> None:
        """End the I/O thread without waiting; takes no lock, so it may run inside a garbage collection."""
        self._closing = True
        self._wake()

    def _on_done(self, request_id: bytes, future: Future[Reply]) -> None:
        """Withdraw a request whose future the caller cancelled."""
        if not future.cancelled():
            return
        call = self._take(request_id)
        if call is not None and call.sent:
            self._cancels.append(request_id)
            self._wake()

    def _wake(self) -> None:
        if not self._armed:
            self._armed = True
            with contextlib.suppress(BlockingIOError, OSError):
                self._wake_write.send(b"\0")

    def _run(self) -> None:
        """The I/O thread. Whatever ends it, it ends every call too."""
        reason = "the client is closed"
        context = self._zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            _configure(socket)
            monitor = socket.get_monitor_socket(_EVENTS)
            socket.connect(self.endpoint)
            self._serve(socket, monitor)
        except zmq.ZMQError as error:
            reason = f"the connection to {self.endpoint} failed: {error}"
        finally:
            with self._lock:
                self._closing = True
            self._fail_all(Unavailable(reason, {"endpoint": self.endpoint}))
            context.destroy(linger=0)
            self._wake_read.close()
            self._wake_write.close()

    def _serve(self, socket: Any, monitor: Any) -> None:
        poller = self._zmq.Poller()
        for source in (socket, monitor, self._wake_read):
            poller.register(source, zmq.POLLIN)
        while not self._closing:
            poller.poll(self._poll_ms())
            # In this order: a byte sent between the two lines would be eaten while it still counts as under way.
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(4096)
            self._armed = False
            self._receive(socket)
            self._watch(monitor)
            if self._up:
                self._send(socket)
            self._expire()

    def _poll_ms(self) -> int:
        with self._lock:
            due = self._deadlines[0][0] if self._deadlines else None
        now = time.monotonic()
        if self._outbox and not self._up:
            connect_by = self._down_since + CONNECT_TIMEOUT_S
            due = min(due or connect_by, max(connect_by, now + 0.02))
        return 60_000 if due is None else max(0, math.ceil((due - now) * 1000))

    def _receive(self, socket: Any) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                header, outputs = decode_reply(frames)
            except ProtocolError as error:
                self._finish(error.request_id, InternalError(f"the reply cannot be read: {error}"))
                continue
            if header.error is msgspec.UNSET:
                self._finish(header.id, Reply(header, outputs))
            else:
                body = header.error
                self._finish(header.id, from_wire(body.code, body.message, body.details))

    def _watch(self, monitor: Any) -> None:
        while True:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._up = True
            elif event == zmq.EVENT_DISCONNECTED and self._up:
                self._up = self._checked = False
                self._down_since = time.monotonic()
                self.generation += 1
                lost = Unavailable(f"connection to {self.endpoint} was lost", {"endpoint": self.endpoint})
                self._fail_all(lost, only_sent=True)

    def _send(self, socket: Any) -> None:
        try:
            while self._outbox:
                call = self._calls.get(self._outbox[0])
                if call is not None:
                    socket.send_multipart(call.frames, zmq.NOBLOCK)
                    call.sent, call.frames = True, []
                self._outbox.popleft()
            while self._cancels:
                target = self._cancels.popleft()
                cancel = RequestHeader(v=VERSION, id=b"c" + target, op="cancel", target=target)
                socket.send_multipart(encode_request(cancel), zmq.NOBLOCK)
        except zmq.Again:
            # The connection has just gone; the monitor will say so, and what is left waits for the next one.
            pass

    def _expire(self) -> None:
        now = time.monotonic()
        if self._outbox and not self._up and now >= self._down_since + CONNECT_TIMEOUT_S:
            self._fail_unsent()
        while True:
            with self._lock:
                if not self._deadlines or self._deadlines[0][0] > now:
                    return
                _, request_id = heapq.heappop(self._deadlines)
                live = request_id in self._calls
            if live:
                self._finish(request_id, DeadlineExceeded("no answer before the deadline"))

    def _fail_unsent(self) -> None:
        """Give up on calls that waited for a connection; the connect time-out has passed."""
        hint = f"no gpu-server daemon answers at {self.endpoint}; {endpoints.START_HINT}"
        waiting = deque(self._outbox)
        self._outbox.clear()
        for request_id in waiting:
            self._finish(request_id, Unavailable(hint, {"endpoint": self.endpoint}))

    def _finish(self, request_id: bytes, outcome: Reply | Exception) -> None:
        call = self._take(request_id)
        if call is None:
            self.late_replies += not request_id.startswith(b"c")
            return
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Reply):
                call.future.set_result(outcome)
            else:
                call.future.set_exception(outcome)

    def _take(self, request_id: bytes) -> _Call | None:
        with self._lock:
            call = self._calls.pop(request_id, None)
            # Most are answered long before their deadline: cheaper to sweep them out now and then than one by one.
            if len(self._deadlines) > max(_MIN_SWEEP, 4 * len(self._calls)):
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._calls]
                heapq.heapify(self._deadlines)
            return call

    def _fail_all(self, error: RemoteError, only_sent: bool = False) -> None:
        with self._lock:
            ids = [i for i, call in self._calls.items() if call.sent or not only_sent]
        for request_id in ids:
            self._finish(request_id, error)


def _configure(socket: Any) -> None:
    socket.linger = 0
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)


def _zmq_for_this_process() -> Any:
    """pyzmq, or its gevent form where gevent has replaced threads: a plain socket would stop every greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from zmq import green

        return green
    return zmq


_making = threading.Lock()


def _renew_lock() -> None:
    """A thread of the parent may have held the lock at the fork, and does not exist here to release it."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _lock_for_this_process() -> threading.Lock:
    """The lock, of the kind that `threading` makes now.

    After gevent's patching a lock from before it, held while greenlets switch, would stop them all.
    """
    global _making
    fresh = threading.Lock()
    if type(_making) is not type(fresh):
        _making = fresh
    return _making


class PerProcess:
    """A connection made on first use and made anew in every forked child."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._pid = 0
        self._connection: Connection | None = None
        self._inherited: list[Connection] = []

    def get(self) -> Connection:
        """This process's connection."""
        known = self._connection
        if self._pid == os.getpid() and known is not None and not known.closed:
            return known
        return self._make()

    def _make(self) -> Connection:
        with _lock_for_this_process():
            if self._pid != os.getpid():
                # Kept, never closed: a parent's socket and locks must not be touched in a child.
                if self._connection is not None:
                    self._inherited.append(self._connection)
                self._connection, self._pid = None, os.getpid()
            if self._connection is None or self._connection.closed:
                self._connection = Connection(self.endpoint)
            return self._connection

    def close(self) -> None:
        """Close this process's connection, if it has one."""
        if self._pid == os.getpid() and self._connection is not None:
            self._connection.close()
            self._connection = None

    def abandon(self) -> None:
        """Let go of this process's connection without waiting; of one from before a fork it touches nothing."""
        if self._pid == os.getpid() and self._connection is not None:
            self._connection.abandon()
