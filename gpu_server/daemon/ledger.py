"""Every accepted request until its one reply: found by connection and id, and by deadline."""

from __future__ import annotations

import heapq
import itertools
import math

from gpu_server.daemon.request import Request

SWEEP_FROM = 128
"""Deadlines that are kept, of answered requests too, before those are looked for."""


class Ledger:
    """Open requests. A request is in here exactly as long as its reply has not been made."""

    def __init__(self) -> None:
        self._open: dict[tuple[bytes, bytes], Request] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._sweep_at = SWEEP_FROM
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: tuple[bytes, bytes]) -> bool:
        return key in self._open

    def add(self, request: Request) -> None:
        """Keep a request; its (peer, id) must be new."""
        self._open[request.peer, request.id] = request
        heapq.heappush(self._deadlines, (request.deadline, next(self._order), request))
        if len(self._deadlines) > self._sweep_at:
            # Most are answered long before their deadline: cheaper to sweep them out now and then than one by one.
            self._deadlines = [entry for entry in self._deadlines if not entry[2].closed]
            heapq.heapify(self._deadlines)
            self._sweep_at = max(SWEEP_FROM, 4 * len(self._deadlines))

    def get(self, peer: bytes, request_id: bytes) -> Request | None:
        """The open request of a connection under an id."""
        return self._open.get((peer, request_id))

    def remove(self, request: Request) -> None:
        """Forget a request whose reply is made."""
        self._open.pop((request.peer, request.id), None)

    def of_peer(self, peer: bytes) -> list[Request]:
        """All open requests of one connection."""
        return [request for (owner, _), request in self._open.items() if owner == peer]

    def all(self) -> list[Request]:
        """All open requests."""
        return list(self._open.values())

    def expired(self, now: float) -> list[Request]:
        """Open requests whose deadline has passed; each is returned once."""
        due = []
        heap = self._deadlines
        while heap and heap[0][0] <= now:
            request = heapq.heappop(heap)[2]
            if not request.closed:
                due.append(request)
        return due

    def next_deadline(self) -> float:
        """When `expired` may next return something; infinity if it will not."""
        return self._deadlines[0][0] if self._deadlines else math.inf
