"""How often the engine has crashed lately: when it may be started again, and when that is no use any more."""

from __future__ import annotations

from collections import deque

BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
CRASHES = 5
CRASH_WINDOW_S = 300.0


class Crashes:
    """The crashes of the last `CRASH_WINDOW_S`; times are on the daemon's clock."""

    def __init__(self) -> None:
        self._at: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._at)

    def note(self, now: float) -> None:
        """Count one, and forget those that are long past."""
        self._at.append(now)
        while now - self._at[0] > CRASH_WINDOW_S:
            self._at.popleft()

    @property
    def too_many(self) -> bool:
        """Whether another start would most likely end the same way."""
        return len(self._at) >= CRASHES

    def retry_at(self) -> float:
        """When the next start may be: at once after the first crash, later after each more."""
        if not self._at:
            return 0.0
        return self._at[-1] + BACKOFF_S[min(len(self._at), len(BACKOFF_S)) - 1]
