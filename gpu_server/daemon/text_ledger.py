"""Requests whose text is being tokenised, until they can be queued or have their reply."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import NamedTuple

from gpu_server.daemon.shared_limit import SharedLimit
from gpu_server.errors import Overloaded
from gpu_server.wire import RequestHeader

MAX_TOKENIZING = 4096
FULL_REQUESTS = 4
"""Requests of the largest size that may wait: a client sends four of half that size ahead, and as bulk may hold half."""
Key = tuple[bytes, bytes]
"""A request among all: its peer and its id."""


class _Tokenizing(NamedTuple):
    header: RequestHeader
    deadline: float
    size: int
    future: Future[None]


class TextLedger:
    """At most `MAX_TOKENIZING` requests, together as large as `FULL_REQUESTS` of the largest; senders share both."""

    def __init__(self, max_request_bytes: int) -> None:
        most = FULL_REQUESTS * max_request_bytes
        self._requests = SharedLimit(MAX_TOKENIZING, f"{MAX_TOKENIZING} requests")
        self._bytes = SharedLimit(most, f"{FULL_REQUESTS} × max_request_bytes = {most}")
        self._first = math.inf
        self._waiting: dict[Key, _Tokenizing] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def check_room(self, peer: bytes, size: int, priority: int) -> None:
        """Raise Overloaded if another `size` bytes are too much."""
        full = self._requests.refusal(peer, 1, priority) or self._bytes.refusal(peer, size, priority)
        if full:
            raise Overloaded(f"too many texts wait to be tokenised ({full})", {"retry_after_ms": 100})

    def add(self, key: Key, header: RequestHeader, deadline: float, size: int, future: Future[None]) -> None:
        """Keep a request; its key must be new."""
        self._waiting[key] = _Tokenizing(header, deadline, size, future)
        self._requests.take(key[0], 1)
        self._bytes.take(key[0], size)
        self._first = min(self._first, deadline)

    def take(self, key: Key, header: RequestHeader) -> float | None:
        """Remove a request that has been tokenised and return its deadline; None if nobody waits for it any more."""
        waiting = self._waiting.get(key)
        # By identity: the caller may have cancelled this request and used its id again.
        if waiting is None or waiting.header is not header:
            return None
        self._remove(key)
        return waiting.deadline

    def stop(self, key: Key) -> RequestHeader | None:
        """Forget a text and return its header; None if that is done (a failing reply to one drops all of its peer's)."""
        waiting = self._remove(key)
        if waiting is None:
            return None
        waiting.future.cancel()
        return waiting.header

    def all(self) -> list[Key]:
        """All requests."""
        return list(self._waiting)

    def of_peer(self, peer: bytes) -> list[Key]:
        """The requests of one connection."""
        return [key for key in self._waiting if key[0] == peer]

    def expired(self, now: float) -> list[Key]:
        """The requests whose deadline has passed; the caller takes them out."""
        due = [key for key, waiting in self._waiting.items() if waiting.deadline <= now]
        self._first = min([w.deadline for w in self._waiting.values() if w.deadline > now], default=math.inf)
        return due

    def next_deadline(self) -> float:
        """When `expired` may next return something; infinity if it will not."""
        return self._first

    def _remove(self, key: Key) -> _Tokenizing | None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._requests.give(key[0], 1)
            self._bytes.give(key[0], waiting.size)
        return waiting
