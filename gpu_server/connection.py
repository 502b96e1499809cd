"""One DEALER socket per process, shared by its threads, and the I/O thread that serves it."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket as sockets
import threading
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from gpu_server import dealer, handshakes, io_thread, tries
from gpu_server import endpoint as endpoints
from gpu_server.curve import ClientKeys
from gpu_server.errors import (
    DeadlineExceeded,
    EndpointForbidden,
    InternalError,
    ProtocolError,
    RemoteError,
    ShuttingDown,
    Unavailable,
    from_wire,
)
from gpu_server.handshakes import Handshakes
from gpu_server.pending import Pending
from gpu_server.pending import Reply as Reply
from gpu_server.tries import Tries
from gpu_server.wire import (
    FAREWELL_ANSWER,
    VERSION,
    RequestHeader,
    Tensors,
    decode_reply,
    encode_request,
)

_serials = itertools.count()
_REPEATABLE = frozenset({"hello", "status", "metrics", "history", "report", "tokenizer"})
_GREETING = encode_request(RequestHeader(v=VERSION, id=b"c", op="hello"))
"""Like those of its cancels, the connection's own: nobody waits for the reply."""


class Connection:
    """Sends requests and matches replies; every call ends by its deadline, whatever happens to the daemon.

    Must be used only in the process that made it.
    `serial` is this connection's alone in its process; `generation` grows with each loss of the daemon.
    keys: for a daemon that wants one. loading: held by the thread that loads a tokenizer for all of this process.
    """

    def __init__(self, endpoint: str, keys: ClientKeys | None = None) -> None:
        endpoints.check(endpoint)
        self.endpoint = endpoint
        self.serial = next(_serials)
        self.generation = 0
        self.loading = threading.Lock()
        self._handshakes = Handshakes(endpoint, keys)
        self._ended: RemoteError = Unavailable("the client is closed", {"endpoint": endpoint})
        self._tries = Tries(endpoint)
        self._pending = Pending()
        self._outbox: deque[bytes] = deque()
        self._parked: list[bytes] = []
        self._cancels: deque[bytes] = deque()
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
        self._closing = False
        self._thread = io_thread.for_this_process(self._run)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._wake_read.close()
            self._wake_write.close()
            raise Unavailable(f"no connection can be made: {error}", {"endpoint": endpoint}) from None

    def submit(self, header: RequestHeader, inputs: Tensors | None, timeout_s: float) -> Future[Reply]:
        """Queue a request; its id and deadline are set here. The future ends with a Reply or a RemoteError.

        Raises Unavailable or EndpointForbidden at once when there is no socket to connect to.
        """
        if not (self._up and self._checked):
            endpoints.check_reachable(self.endpoint)
            self._checked = True
        call = self._pending.add(header, inputs, timeout_s)
        self._outbox.append(header.id)
        call.future.add_done_callback(partial(self._on_done, header.id))
        self._wake()
        return call.future

    @property
    def late_replies(self) -> int:
        """Answers that came after their call had ended."""
        return self._pending.late

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls: closed, or its I/O thread has met an error that it cannot go on from."""
        return self._closing

    def close(self) -> None:
        """End the I/O thread; pending calls fail with Unavailable."""
        self.abandon()
        self._thread.join(2.0)

    def abandon(self) -> None:
        """End the I/O thread without waiting; takes no lock, so it may run inside a garbage collection."""
        self._closing = True
        self._wake()

    def _on_done(self, request_id: bytes, future: Future[Reply]) -> None:
        """Withdraw a request whose future the caller cancelled."""
        if not future.cancelled():
            return
        call = self._pending.take(request_id)
        if call is not None and call.sent:
            self._cancels.append(request_id)
            self._wake()

    def _wake(self) -> None:
        if not self._armed:
            self._armed = True
            try:
                self._wake_write.send(b"\0")
            except OSError:
                pass
            except BaseException:
                # Of a signal's handler: the byte may not be under way.
                self._armed = False
                raise

    def _run(self) -> None:
        """The I/O thread. Whatever ends it, it ends every call too."""
        with contextlib.ExitStack() as freed:
            freed.callback(self._wake_write.close)
            freed.callback(self._wake_read.close)
            try:
                context = zmq.Context()
                # After the calls have ended: it waits for libzmq's thread, which may look a host up.
                freed.callback(context.destroy, linger=0)
                socket = context.socket(zmq.DEALER)
                monitor = self._connect(socket)
                self._serve(socket, monitor)
            except zmq.ZMQError as error:
                reason = f"the connection to {self.endpoint} failed: {error}"
                self._ended = Unavailable(reason, {"endpoint": self.endpoint})
            except EndpointForbidden as error:
                self._ended = error
            finally:
                self._closing = True
                self._pending.end(self._ended)

    def _connect(self, socket: Any) -> Any:
        """Start to connect; returns the socket's monitor."""
        dealer.configure(socket)
        self._handshakes.configure(socket)
        socket.setsockopt(zmq.IPV6, endpoints.is_ipv6(self.endpoint))
        monitor = socket.get_monitor_socket(handshakes.EVENTS | tries.EVENTS)
        socket.connect(self.endpoint)
        return monitor

    def _serve(self, socket: Any, monitor: Any) -> None:
        poller = self._thread.poller()
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
            elif self._outbox and self._tries.are_hopeless():
                self._fail_unsent()
            self._expire()

    def _poll_ms(self) -> int:
        due = self._pending.due()
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
                self._pending.finish(error.request_id, InternalError(f"the reply cannot be read: {error}"))
                continue
            if header.error is msgspec.UNSET:
                self._pending.finish(header.id, Reply(header, outputs))
            else:
                body = header.error
                self._refused_with(header.id, from_wire(body.code, body.message, body.details), socket)

    def _refused_with(self, request_id: bytes, refusal: RemoteError, socket: Any) -> None:
        if isinstance(refusal, ShuttingDown) and not request_id:
            self._part(socket)
        elif isinstance(refusal, ShuttingDown) and refusal.details.get("successor"):
            self._park(request_id)
        else:
            self._pending.finish(request_id, refusal)

    def _watch(self, monitor: Any, socket: Any) -> None:
        while True:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            self._handshakes.saw(event)
            self._tries.saw(event)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._up, self._heard, self._greeted = True, False, False
            elif event == zmq.EVENT_DISCONNECTED:
                # Replies from before the end may have come since they were last looked for.
                self._receive(socket)
                if self._up:
                    if not self._heard:
                        self._keep_unread()
                    self._over()
                    lost = Unavailable(f"connection to {self.endpoint} was lost", {"endpoint": self.endpoint})
                    self._pending.fail(lost, lambda call: call.sent)

    def _over(self) -> None:
        """This connection takes no more; what was kept for the next one is sent there."""
        self._up = self._checked = False
        self.generation += 1
        self._outbox.extendleft(reversed(self._parked))
        self._parked.clear()

    def _park(self, request_id: bytes) -> None:
        """Keep a request that was sent for the next connection."""
        call = self._pending.get(request_id)
        if call is not None and call.sent:
            call.sent = False
            self._parked.append(request_id)

    def _keep_unread(self) -> None:
        """Keep what may be asked twice: the daemon may have closed before it read anything of this connection."""
        for request_id in self._pending:
            if (call := self._pending.get(request_id)) and call.header.op in _REPEATABLE:
                self._park(request_id)

    def _part(self, socket: Any) -> None:
        """Answer the daemon's farewell: all its replies are here, and what has none it never read."""
        with contextlib.suppress(zmq.Again):
            socket.send_multipart(FAREWELL_ANSWER, zmq.NOBLOCK)
        for request_id in self._pending:
            self._park(request_id)
        self._over()

    def _send(self, socket: Any) -> None:
        try:
            while self._outbox:
                call = self._pending.get(self._outbox[0])
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
        for request_id, call in self._pending.overdue():
            late = DeadlineExceeded("no answer before the deadline")
            self._pending.finish(request_id, late if call.sent else self._tries.error(late=True))
        if self._pending.mostly_ended(len(self._outbox)):
            for _ in range(len(self._outbox)):
                if self._pending.get(request_id := self._outbox.popleft()):
                    self._outbox.append(request_id)

    def _fail_unsent(self) -> None:
        """Give up on calls that wait for a connection: nobody is there to connect to."""
        for _ in range(len(self._outbox)):
            self._pending.finish(self._outbox.popleft(), self._tries.error())
