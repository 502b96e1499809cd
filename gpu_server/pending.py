"""The calls of a connection that have not ended: each by its id, all by their deadlines."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

import zmq

from gpu_server.errors import InvalidRequest, Overloaded, ProtocolError, RemoteError
from gpu_server.wire import ReplyHeader, RequestHeader, Tensors, encode_request
from gpu_server.wire.tensor import Buffer

DEADLINE_SLACK_S = 0.05
MAX_PENDING = 65_536
MAX_TIMEOUT_S = 86_400.0
STALE_S = 0.05
"""A request that waited for longer before it was sent has its deadline set anew."""
MIN_SWEEP = 1024
"""From how many on those that have ended are swept out of a queue: once they are most of it."""


@dataclass(slots=True)
class Reply:
    """A good answer: header and output tensors."""

    header: ReplyHeader
    outputs: Tensors


@dataclass(slots=True)
class Call:
    """One request, until its future ends."""

    future: Future[Reply]
    header: RequestHeader
    inputs: Tensors | None
    frames: list[Buffer]
    expires: float
    sent: bool = False

    def send(self, socket: Any) -> None:
        """Send it. Raises zmq.Again where the connection has just gone."""
        # Before it goes: whoever cancels it from then on has to tell the daemon.
        self.sent = True
        if self.future.cancelled():
            return
        try:
            socket.send_multipart(self._timely(), zmq.NOBLOCK)
        except zmq.Again:
            self.sent = False
            raise
        self.frames = []

    def _timely(self) -> list[Buffer]:
        """The frames to send now, with the time that is left: some wait for a daemon first."""
        left_ms = int((self.expires - DEADLINE_SLACK_S - time.monotonic()) * 1000)
        if not self.frames or self.header.deadline_ms - left_ms > STALE_S * 1000:
            self.header.deadline_ms = max(1, left_ms)
            self.frames = encode_request(self.header, self.inputs)
        return self.frames


class Pending:
    """The calls; any thread may add one and take one out. `late` counts outcomes that came after their call had ended."""

    def __init__(self) -> None:
        self.late = 0
        self._ids = itertools.count(1)
        self._calls: dict[bytes, Call] = {}
        self._deadlines: list[tuple[float, bytes]] = []
        # A collection of garbage within it may end a call of an abandoned task, in the same thread.
        self._lock = threading.RLock()
        self._ended: RemoteError | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[bytes]:
        """The ids, as they are now."""
        return iter(list(self._calls))

    def get(self, request_id: bytes) -> Call | None:
        """The call of that id, None once it has ended."""
        return self._calls.get(request_id)

    def add(self, header: RequestHeader, inputs: Tensors | None, timeout_s: float) -> Call:
        """A call of this request, whose id and deadline are set here.

        Raises InvalidRequest on what cannot be encoded, Overloaded beyond `MAX_PENDING`, and after `end` its error.
        """
        if len(self._calls) >= MAX_PENDING:
            raise Overloaded(f"{MAX_PENDING} requests of this process are already pending")
        # Ids of the connection's own messages start with b"c", these with 0.
        header.id = next(self._ids).to_bytes(8, "big")
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        header.deadline_ms = max(1, int(timeout_s * 1000))
        expires = time.monotonic() + timeout_s + DEADLINE_SLACK_S
        try:
            call = Call(Future(), header, inputs, encode_request(header, inputs), expires)
        except ProtocolError as error:
            raise InvalidRequest(str(error), error.details) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"the request cannot be encoded: {error}") from None
        with self._lock:
            if self._ended is not None:
                raise _again(self._ended)
            self._calls[header.id] = call
            heapq.heappush(self._deadlines, (expires, header.id))
        return call

    def take(self, request_id: bytes) -> Call | None:
        """Take a call out; None where it has ended."""
        with self._lock:
            call = self._calls.pop(request_id, None)
            # Most are answered long before their deadline: cheaper to sweep them out now and then than one by one.
            if self.mostly_ended(len(self._deadlines)):
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._calls]
                heapq.heapify(self._deadlines)
            return call

    def mostly_ended(self, count: int) -> bool:
        """Whether most of so many ids must be of calls that have ended, and they are worth a sweep."""
        return count > max(MIN_SWEEP, 4 * len(self._calls))

    def finish(self, request_id: bytes, outcome: Reply | Exception) -> None:
        """End a call."""
        call = self.take(request_id)
        if call is None:
            self.late += not request_id.startswith(b"c")
            return
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Reply):
                call.future.set_result(outcome)
            else:
                call.future.set_exception(outcome)

    def fail(self, error: RemoteError, which: Callable[[Call], bool] = lambda call: True) -> None:
        """End those that `which` picks, each with an error like this one."""
        with self._lock:
            ids = [request_id for request_id, call in self._calls.items() if which(call)]
        for request_id in ids:
            self.finish(request_id, _again(error))

    def end(self, error: RemoteError) -> None:
        """End all with an error like this one, and take no more."""
        with self._lock:
            self._ended = error
        self.fail(error)

    def due(self) -> float | None:
        """When the next deadline passes, by `time.monotonic()`; None without one."""
        with self._lock:
            return self._deadlines[0][0] if self._deadlines else None

    def overdue(self) -> Iterator[tuple[bytes, Call]]:
        """Those whose deadlines have passed, each once."""
        now = time.monotonic()
        while True:
            with self._lock:
                if not self._deadlines or self._deadlines[0][0] > now:
                    return
                _, request_id = heapq.heappop(self._deadlines)
                call = self._calls.get(request_id)
            if call is not None:
                yield request_id, call


def _again(error: RemoteError) -> RemoteError:
    """One for each call: those who raise it write to it."""
    return type(error)(error.message, error.details)
