"""Requests that came before the first load was done, until the models that they are for are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gpu_server.daemon.shared_limit import SharedLimit
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
    """At most `MAX_WAITING` requests, with `max_bytes` (the setting `max_queue_bytes`) together; senders share both.

    refuse: sends a peer the error reply to the request of that id.
    """

    def __init__(self, max_bytes: int, refuse: Callable[[bytes, bytes, RemoteError], None]) -> None:
        self.max_bytes = max_bytes
        self._refuse = refuse
        self._requests = SharedLimit(MAX_WAITING, f"{MAX_WAITING} requests")
        self._bytes = SharedLimit(max_bytes, f"max_queue_bytes = {max_bytes}")
        self._first = math.inf
        self._waiting: dict[Key, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key, waiting: Waiting) -> None:
        """Keep a request. Raises Overloaded where there is no room, InvalidRequest if one of its id waits already."""
        if key in self._waiting:
            raise InvalidRequest("this id is already outstanding on this connection")
        peer, size, priority = key[0], _size(waiting), waiting.header.priority
        full = self._requests.refusal(peer, 1, priority) or self._bytes.refusal(peer, size, priority)
        if full:
            raise Overloaded(f"too many requests wait for the first load ({full})", {"retry_after_ms": 1000})
        self._waiting[key] = waiting
        self._requests.take(peer, 1)
        self._bytes.take(peer, size)
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
            self._requests.give(key[0], 1)
            self._bytes.give(key[0], _size(waiting))
        return waiting


def _size(waiting: Waiting) -> int:
    return sum(len(tensor.data) for tensor in waiting.inputs.values())
