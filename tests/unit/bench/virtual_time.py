"""A clock that jumps from one call-back to the next, and connections whose answers take as long as a test says."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class VirtualClock:
    """`time` and `call_at` of an event loop, in no real time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._number = count()

    def time(self) -> float:
        """Now."""
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], object]) -> None:
        """Call back at that time."""
        heapq.heappush(self._calls, (when, next(self._number), callback))

    def run_until(self, end_s: float) -> None:
        """Make every call that is due until then."""
        while self._calls and self._calls[0][0] <= end_s:
            when, _, callback = heapq.heappop(self._calls)
            self.now_s = max(self.now_s, when)
            callback()
        self.now_s = end_s


class FakeConnection:
    """Answers `200` after the next of the service times; `sent` holds (when sent, since when it waited)."""

    def __init__(
        self,
        clock: VirtualClock,
        service_s: Callable[[], float],
        ended: Callable[[FakeConnection, str], None],
    ) -> None:
        self.since_s = 0.0
        self.sent: list[tuple[float, float]] = []
        self._clock = clock
        self._service_s = service_s
        self._ended = ended

    def send(self, request: bytes, since_s: float) -> None:
        """Take a request; only one at a time."""
        self.since_s = since_s
        now = self._clock.time()
        self.sent.append((now, since_s))
        self._clock.call_at(now + self._service_s(), lambda: self._ended(self, "200"))
