"""When requests are sent: closed loop (after the last answer) or open loop (when they are due, come what may)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Protocol

from gpu_server.bench.histogram import Histogram


class Sender(Protocol):
    """What a loop needs of a connection."""

    since_s: float

    def send(self, request: bytes, since_s: float) -> None:
        """Send a request whose waiting time began at `since_s`."""


class Clock(Protocol):
    """What a loop needs of an asyncio event loop."""

    def time(self) -> float:
        """Now, in seconds."""

    def call_at(self, when: float, callback: Callable[[], object]) -> object:
        """Call back at that time."""


class Tally:
    """Latencies by outcome, of the requests that belong to the window; `good` counts the 2xx answers that came in it."""

    def __init__(self, begins_s: float, ends_s: float) -> None:
        self.begins_s = begins_s
        self.ends_s = ends_s
        self.outcomes: dict[str, Histogram] = {}
        self.good = 0
        self.answers = 0
        self.errors = 0

    def within(self, time_s: float) -> bool:
        """Whether a time is in the window."""
        return self.begins_s <= time_s < self.ends_s

    def add(self, outcome: str, since_s: float, now_s: float, *, counts: bool) -> None:
        """Take one request that has ended now; `counts` if it belongs to the window."""
        good = succeeded(outcome)
        self.answers += 1
        self.errors += not good
        self.good += good and self.within(now_s)
        if counts:
            self.outcomes.setdefault(outcome, Histogram()).add(now_s - since_s)


def succeeded(outcome: str) -> bool:
    """Whether an outcome is a 2xx status."""
    return outcome.isdigit() and outcome[0] == "2"


class ClosedLoop:
    """Each connection sends as soon as it has its answer. What counts is what ends inside the window."""

    def __init__(self, tally: Tally, requests: Sequence[bytes], clock: Clock) -> None:
        self._tally = tally
        self._requests = cycle(requests)
        self._clock = clock

    @property
    def drained(self) -> bool:
        """Whether nothing that counts is still to come."""
        return True

    def start(self, connections: Sequence[Sender]) -> None:
        """Send the first request on each connection."""
        for connection in connections:
            connection.send(next(self._requests), self._clock.time())

    def ended(self, connection: Sender, outcome: str) -> None:
        """A request has ended: count it and send the next."""
        now = self._clock.time()
        self._tally.add(outcome, connection.since_s, now, counts=self._tally.within(now))
        if now < self._tally.ends_s:
            connection.send(next(self._requests), now)

    def expire(self, before_s: float) -> None:
        """Nothing waits here for a connection."""


class OpenLoop:
    """Requests are due at random times (Poisson), whatever the answers do; what counts is what is due in the window.

    A latency begins at the due time, also where the request had to wait for a free connection: a service that stalls
    cannot hide it by delaying the next request (coordinated omission).
    """

    def __init__(
        self, tally: Tally, requests: Sequence[bytes], clock: Clock, rate: float, draw: random.Random
    ) -> None:
        self.offered = 0
        self.waited = 0
        self.late = Histogram()
        self._tally = tally
        self._requests = cycle(requests)
        self._clock = clock
        self._gap: Callable[[], float] = lambda: draw.expovariate(rate)
        self._free: deque[Sender] = deque()
        self._waiting: deque[float] = deque()
        self._connections = 0
        self._due_s = 0.0

    @property
    def drained(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and len(self._free) == self._connections

    def start(self, connections: Sequence[Sender]) -> None:
        """Begin; the first request is due after a random gap, as all others."""
        self._free.extend(connections)
        self._connections = len(connections)
        self._due_s = self._clock.time() + self._gap()
        self._clock.call_at(self._due_s, self._arrive)

    def ended(self, connection: Sender, outcome: str) -> None:
        """A request has ended: count it; its connection takes the one that has waited longest."""
        self._count(outcome, connection.since_s)
        if self._waiting:
            connection.send(next(self._requests), self._waiting.popleft())
        else:
            self._free.append(connection)

    def expire(self, before_s: float) -> None:
        """Give up those that have waited for a connection since before then."""
        while self._waiting and self._waiting[0] < before_s:
            self._count("timeout", self._waiting.popleft())

    def _arrive(self) -> None:
        now = self._clock.time()
        while self._due_s <= now and self._due_s < self._tally.ends_s:
            self._offer(self._due_s, now)
            self._due_s += self._gap()
        if self._due_s < self._tally.ends_s:
            self._clock.call_at(self._due_s, self._arrive)

    def _offer(self, due_s: float, now: float) -> None:
        counts = self._tally.within(due_s)
        self.offered += counts
        if not self._free:
            self.waited += counts
            self._waiting.append(due_s)
            return
        if counts:
            self.late.add(now - due_s)
        self._free.popleft().send(next(self._requests), due_s)

    def _count(self, outcome: str, since_s: float) -> None:
        self._tally.add(outcome, since_s, self._clock.time(), counts=self._tally.within(since_s))
