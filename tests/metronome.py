"""How long this process could not run: what its callers see late although it happened in time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

BEAT_S = 0.02
STALL_S = 0.05
"""A beat that is later than this is a stall, unless told otherwise: no core was free, or another thread kept the
interpreter."""


class Metronome:
    """Threads that wake at a steady beat and keep the times in which they could not. Use as a context manager.

    every_core: one thread on each core, for what other processes do; else one thread wherever there is room.
    """

    def __init__(self, stall_s: float = STALL_S, *, every_core: bool = False) -> None:
        self._stall_s = stall_s
        # A stall may begin up to one beat before it is noticed.
        self._beat_s = min(BEAT_S, stall_s / 2)
        self._stalls: list[tuple[float, float]] = []
        cores = [{core} for core in os.sched_getaffinity(0)] if every_core else [os.sched_getaffinity(0)]
        self._due = [time.monotonic()] * len(cores)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=place) for place in enumerate(cores)]

    def __enter__(self) -> Metronome:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def stalled_s(self, since: float, until: float) -> float:
        """Seconds of stalls between two moments of the monotonic clock, one that still lasts included."""
        stalled_s, counted = 0.0, since
        for begin, end in sorted(self._seen(until)):
            stalled_s += max(0.0, min(end, until) - max(begin, counted))
            counted = max(counted, end)
        return stalled_s

    def calm(self, since: float, until: float) -> bool:
        """Whether there was no stall between two moments of the monotonic clock."""
        return not any(
            end - begin > self._stall_s and begin < until and end > since for begin, end in self._seen(until)
        )

    def ran_s(self, since: float) -> float:
        """Seconds from then to now in which this process could run."""
        now = time.monotonic()
        return now - since - self.stalled_s(since, now)

    def unix_ran_s(self, since: float, until: float) -> float:
        """Seconds between two moments of Unix time, as logs have them, in which this process could run."""
        ahead = time.time() - time.monotonic()
        return until - since - self.stalled_s(since - ahead, until - ahead)

    @property
    def longest_s(self) -> float:
        """The longest stall so far."""
        return max((end - begin for begin, end in self._stalls), default=0.0)

    def _seen(self, until: float) -> Iterator[tuple[float, float]]:
        now = min(until, time.monotonic())
        yield from self._stalls
        for due in self._due:
            yield due, max(due, now)

    def _run(self, number: int, cores: set[int]) -> None:
        os.sched_setaffinity(0, cores)
        while not self._stop.is_set():
            due = self._due[number] = time.monotonic() + self._beat_s
            time.sleep(self._beat_s)
            woken = time.monotonic()
            if woken - due > self._stall_s:
                self._stalls.append((due, woken))
