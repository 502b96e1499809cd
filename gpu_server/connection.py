"""One DEALER socket per process, shared by its threads: a table of pending calls and the I/O thread that serves it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import socket as sockets
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

from gpu_server import dealer
from gpu_server import endpoint as endpoints
from gpu_server.curve import ClientKeys
from gpu_server.errors import (
    DeadlineExceeded,
    EndpointForbidden,
    InternalError,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    RemoteError,
    ShuttingDown,
    Unavailable,
    from_wire,
)
from gpu_server.handshakes import EVENTS, Handshakes
from gpu_server.wire import (
    FAREWELL_ANSWER,
    VERSION,
    ReplyHeader,
    RequestHeader,
    Tensors,
    decode_reply,
    encode_request,
)
from gpu_server.wire.tensor import Buffer

DEADLINE_SLACK_S = 0.05
MAX_PENDING = 65_536
MAX_TIMEOUT_S = 86_400.0
STALE_S = 0.05
"""A request that waited for longer before it was sent has its deadline set anew."""
_MIN_SWEEP = 1024
_serials = itertools.count()
_EVENTS = EVENTS | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_REPEATABLE = frozenset({"hello", "status", "metrics", "history", "report", "tokenizer"})
_GREETING = encode_request(RequestHeader(v=VERSION, id=b"c", op="hello"))
"""Like those of its cancels, the connection's own: nobody waits for the reply."""


@dataclass(slots=True)
class Reply:
    """A good answer: header and output tensors."""

    header: ReplyHeader
    outputs: Tensors


@dataclass(slots=True)
class _Call:
    future: Future[Reply]
    header: RequestHeader
    inputs: Tensors | None
    frames: list[Buffer]
    expires: float
    sent: bool = False

    def timely(self) -> list[Buffer]:
        """The frames to send now, with the time that is left: some wait for a daemon first."""
        left_ms = int((self.expires - DEADLINE_SLACK_S - time.monotonic()) * 1000)
        if not self.frames or self.header.deadline_ms - left_ms > STALE_S * 1000:
            self.header.deadline_ms = max(1, left_ms)
            self.frames = encode_request(self.header, self.inputs)
        return self.frames

    def send(self, socket: Any) -> None:
        """Send it. Raises zmq.Again where the connection has just gone."""
        # Before it goes: whoever cancels it from then on has to tell the daemon.
        self.sent = True
        try:
            socket.send_multipart(self.timely(), zmq.NOBLOCK)
        except zmq.Again:
            self.sent = False
            raise
        self.frames = []


class Connection:
    """Sends requests and matches replies; every call ends by its deadline, whatever happens to the daemon.

    Must be used only in the process that made it. `late_replies` counts answers that came after their call had ended.
    `serial` is this connection's alone in its process; `generation` grows with each loss of the daemon.
    keys: for a daemon that wants one.
    """

    def __init__(self, endpoint: str, keys: ClientKeys | None = None) -> None:
        endpoints.check(endpoint)
        self.endpoint = endpoint
        self.serial = next(_serials)
        self.generation = 0
        self.late_replies = 0
        self._zmq = dealer.zmq_for_this_process()
        self._handshakes = Handshakes(endpoint, keys)
        self._ended: RemoteError = Unavailable("the client is closed", {"endpoint": endpoint})
        self._ids = itertools.count(1)
        self._calls: dict[bytes, _Call] = {}
        self._outbox: deque[bytes] = deque()
        self._parked: list[bytes] = []
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
        self._heard = False
        self._greeted = False
        self._checked = False
        self._refused = False
        self._closing = False
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
            call = _Call(future, header, inputs, encode_request(header, inputs), expires)
        except ProtocolError as error:
            raise InvalidRequest(str(error), error.details) from None
        with self._lock:
            if self._closing:
                raise type(self._ended)(self._ended.message, self._ended.details)
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
        context = self._zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            dealer.configure(socket)
            self._handshakes.configure(socket)
            monitor = socket.get_monitor_socket(_EVENTS)
            socket.connect(self.endpoint)
            self._serve(socket, monitor)
        except zmq.ZMQError as error:
            reason = f"the connection to {self.endpoint} failed: {error}"
            self._ended = Unavailable(reason, {"endpoint": self.endpoint})
        except EndpointForbidden as error:
            self._ended = error
        finally:
            with self._lock:
                self._closing = True
            self._fail_all(self._ended)
            context.destroy(linger=0)
            self._wake_read.close()
            self._wake_write.close()

    def _serve(self, socket: Any, monitor: Any) -> None:
        poller = self._zmq.Poller()
        for source in (socket, monitor, self._wake_read):
            poller.register(source, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll(self._poll_ms()))
            if self._wake_read.fileno() in ready:
                # In this order: a byte sent between the two lines would be eaten while it still counts as under way.
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                self._armed = False
            if socket in ready:
                self._receive(socket)
            if monitor in ready:
                self._watch(monitor, socket)
            if self._up:
                self._send(socket)
            elif self._refused and self._outbox:
                self._look_again()
            self._expire()

    def _poll_ms(self) -> int:
        with self._lock:
            due = self._deadlines[0][0] if self._deadlines else None
        return 60_000 if due is None else max(0, math.ceil((due - time.monotonic()) * 1000))

    def _receive(self, socket: Any) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = True
            try:
                header, outputs = decode_reply(frames)
            except ProtocolError as error:
                self._finish(error.request_id, InternalError(f"the reply cannot be read: {error}"))
                continue
            if header.error is msgspec.UNSET:
                self._finish(header.id, Reply(header, outputs))
            else:
                body = header.error
                self._refused_with(header.id, from_wire(body.code, body.message, body.details), socket)

    def _refused_with(self, request_id: bytes, refusal: RemoteError, socket: Any) -> None:
        if isinstance(refusal, ShuttingDown) and not request_id:
            self._part(socket)
        elif isinstance(refusal, ShuttingDown) and refusal.details.get("successor"):
            self._park(request_id)
        else:
            self._finish(request_id, refusal)

    def _watch(self, monitor: Any, socket: Any) -> None:
        while True:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            self._handshakes.saw(event)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._up, self._refused = True, False
                self._heard = self._greeted = False
            elif event == zmq.EVENT_CLOSED:
                self._refused = True
            elif event == zmq.EVENT_DISCONNECTED:
                # Replies from before the end may have come since they were last looked for.
                self._receive(socket)
                if self._up:
                    if not self._heard:
                        self._keep_unread()
                    self._over()
                    lost = Unavailable(f"connection to {self.endpoint} was lost", {"endpoint": self.endpoint})
                    self._fail_all(lost, only_sent=True)

    def _over(self) -> None:
        """This connection takes no more; what was kept for the next one is sent there."""
        self._up = self._checked = False
        self.generation += 1
        self._outbox.extendleft(reversed(self._parked))
        self._parked.clear()

    def _park(self, request_id: bytes) -> None:
        """Keep a request that was sent for the next connection."""
        call = self._calls.get(request_id)
        if call is not None and call.sent:
            call.sent = False
            self._parked.append(request_id)

    def _keep_unread(self) -> None:
        """Keep what may be asked twice: the daemon may have closed before it read anything of this connection."""
        for request_id in list(self._calls):
            if (call := self._calls.get(request_id)) and call.header.op in _REPEATABLE:
                self._park(request_id)

    def _part(self, socket: Any) -> None:
        """Answer the daemon's farewell: all its replies are here, and what has none it never read."""
        with contextlib.suppress(zmq.Again):
            socket.send_multipart(FAREWELL_ANSWER, zmq.NOBLOCK)
        for request_id in list(self._calls):
            self._park(request_id)
        self._over()

    def _look_again(self) -> None:
        """libzmq's last try to connect has failed, a moment ago: give up, unless somebody listens by now."""
        self._refused = not endpoints.listens(self.endpoint)
        if self._refused:
            self._fail_unsent()

    def _send(self, socket: Any) -> None:
        try:
            while self._outbox:
                call = self._calls.get(self._outbox[0])
                if call is not None:
                    if not self._heard and call.header.op == "infer":
                        self._greet(socket)
                        break
                    call.send(socket)
                self._outbox.popleft()
            while self._cancels:
                target = self._cancels.popleft()
                cancel = RequestHeader(v=VERSION, id=b"c" + target, op="cancel", target=target)
                socket.send_multipart(encode_request(cancel), zmq.NOBLOCK)
        except zmq.Again:
            # The connection has just gone; the monitor will say so, and what is left waits for the next one.
            pass

    def _greet(self, socket: Any) -> None:
        """Ask for a sign of life: a daemon that has given one says farewell before it closes, so no request is lost."""
        if not self._greeted:
            socket.send_multipart(_GREETING, zmq.NOBLOCK)
            self._greeted = True

    def _expire(self) -> None:
        now = time.monotonic()
        while True:
            with self._lock:
                if not self._deadlines or self._deadlines[0][0] > now:
                    return
                _, request_id = heapq.heappop(self._deadlines)
                call = self._calls.get(request_id)
            if call is not None:
                late = DeadlineExceeded("no answer before the deadline")
                self._finish(request_id, late if call.sent else self._nobody())

    def _fail_unsent(self) -> None:
        """Give up on calls that wait for a connection: nobody is there to connect to."""
        for _ in range(len(self._outbox)):
            self._finish(self._outbox.popleft(), self._nobody())

    def _nobody(self) -> Unavailable:
        hint = f"no gpu-server daemon answers at {self.endpoint}; {endpoints.START_HINT}"
        return Unavailable(hint, {"endpoint": self.endpoint})

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
