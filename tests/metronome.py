"""How long this process could not run: what its callers see late although it happened in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

BEAT_S = 0.02
STALL_S = 0.05
"""A beat that is later than this is a stall, unless told otherwise: no core was free, or another thread kept the
interpreter."""


class Metronome:
    """A thread that wakes at a steady beat and keeps the times in which it could not. Use as a context manager."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._stalls: list[tuple[float, float]] = []
        self._due = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Metronome:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def stalled_s(self, since: float, until: float) -> float:
        """Seconds of stalls between two moments of the monotonic clock, one that still lasts included."""
        return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in self._seen(until))

    def ran_s(self, since: float) -> float:
        """Seconds from then to now in which this process could run."""
        now = time.monotonic()
        return now - since - self.stalled_s(since, now)

    @property
    def longest_s(self) -> float:
        """The longest stall so far."""
        return max((end - begin for begin, end in self._stalls), default=0.0)

    def _seen(self, now: float) -> Iterator[tuple[float, float]]:
        yield from self._stalls
        yield self._due, max(self._due, now)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._due = time.monotonic() + BEAT_S
            time.sleep(BEAT_S)
            woken = time.monotonic()
            if woken - self._due > self._stall_s:
                self._stalls.append((self._due, woken))
