"""Wakes the daemon's loop at a moment: a poll's own time-out counts whole milliseconds, in which several batches may end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

SOONEST_S = 1e-6


class Alarm:
    """The process's interval timer, over the loop's clock; its signal reaches the loop through the wake-up descriptor."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at: float | None = None
        signal.signal(signal.SIGALRM, self._ring)

    def set(self, at: float | None) -> None:
        """Wake the loop `at` a moment of the clock, and no more at any that was set before; None: at none."""
        if at != self._at:
            self._at = at
            signal.setitimer(signal.ITIMER_REAL, 0 if at is None else max(SOONEST_S, at - self._clock()))

    def _ring(self, number: int, frame: FrameType | None) -> None:
        self._at = None
