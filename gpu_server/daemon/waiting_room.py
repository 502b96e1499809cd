"""Requests that came before the first load was done, until the models that they are for are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gpu_server.errors import InvalidRequest, Overloaded, RemoteError
from gpu_server.wire import RequestHeader, Tensors

MAX_WAITING = 4096
Key = tuple[bytes, bytes]
"""A request among all: its peer and its id."""


class Waiting(NamedTuple):
    """A request, and when its caller gives up, on the clock."""

    header: RequestHeader
    inputs: Tensors
    deadline: float


class WaitingRoom:
    """At most `MAX_WAITING` requests, with `max_bytes` of input together.

    refuse: sends a peer the error reply to the request of that id.
    """

    def __init__(self, max_bytes: int, refuse: Callable[[bytes, bytes, RemoteError], None]) -> None:
        self.max_bytes = max_bytes
        self._refuse = refuse
        self._bytes = 0
        self._first = math.inf
        self._waiting: dict[Key, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key, waiting: Waiting) -> None:
        """Keep a request. Raises Overloaded where there is no room, InvalidRequest if one of its id waits already."""
        if key in self._waiting:
            raise InvalidRequest("this id is already outstanding on this connection")
        size = _size(waiting)
        if len(self._waiting) >= MAX_WAITING or self._bytes + size > self.max_bytes:
            raise Overloaded("too many requests wait for the first load", {"retry_after_ms": 1000})
        self._waiting[key] = waiting
        self._bytes += size
        self._first = min(self._first, waiting.deadline)

    def leave(self) -> Iterator[tuple[Key, Waiting]]:
        """All requests, the oldest first; each is out when it comes."""
        for key in list(self._waiting):
            if (waiting := self._take(key)) is not None:
                yield key, waiting

    def drop(self, peer: bytes) -> None:
        """Forget what a lost connection waits for."""
        for key in [key for key in self._waiting if key[0] == peer]:
            self._take(key)

    def fail(self, key: Key, error: RemoteError) -> None:
        """Answer a request with an error, if it is here."""
        if self._take(key) is not None:
            self._refuse(*key, error)

    def fail_all(self, error: RemoteError) -> None:
        """Answer all with an error."""
        for key in list(self._waiting):
            self.fail(key, error)

    def expire(self, now: float, error: RemoteError) -> None:
        """Answer those whose deadline has passed with an error."""
        for key in [key for key, waiting in self._waiting.items() if waiting.deadline <= now]:
            self.fail(key, error)
        self._first = min([waiting.deadline for waiting in self._waiting.values()], default=math.inf)

    def next_deadline(self) -> float:
        """When `expire` may next have work; infinity if it will not."""
        return self._first

    def _take(self, key: Key) -> Waiting | None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._bytes -= _size(waiting)
        return waiting


def _size(waiting: Waiting) -> int:
    return sum(len(tensor.data) for tensor in waiting.inputs.values())
