"""How engines have ended lately: when another may be started, and when that is no use any more."""

from __future__ import annotations

from collections import deque

from gpu_server.errors import DeviceLost
from gpu_server.wire.events import Event

BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
CRASHES = 5
CRASH_WINDOW_S = 300.0


class Crashes:
    """The crashes of the last `CRASH_WINDOW_S`, and what engines said before they ended; times are on the daemon's clock."""

    def __init__(self) -> None:
        self._at: deque[float] = deque()
        self._final: tuple[str, int] | None = None
        self._device_lost = False

    def __len__(self) -> int:
        return len(self._at)

    def note(self, now: float) -> None:
        """Count one, and forget those that are long past."""
        self._at.append(now)
        while now - self._at[0] > CRASH_WINDOW_S:
            self._at.popleft()

    def judge(self, failed: Event, loading: bool) -> None:
        """Note whether an engine's own words rule out that another start can help. loading: it failed in its start."""
        if self._device_lost and loading and failed.fault != "memory":
            # The one fresh process that a lost device is worth has not found it either.
            self._final = f"the device is lost: {failed.message}", DeviceLost.exit_code
        elif failed.permanent:
            self._final = failed.message, failed.exit_code
        self._device_lost = self._device_lost or failed.fault == "device"

    def forget_words(self) -> None:
        """An engine is ready: what the ones before it said of their ends does not hold any more."""
        self._final, self._device_lost = None, False

    def final(self, last: str) -> tuple[str, int] | None:
        """Why another start would most likely end as the `last` one, and the exit code; None while it may help."""
        if self._final is None and len(self._at) >= CRASHES:
            reason = f"the engine failed {len(self._at)} times in {CRASH_WINDOW_S:.0f} s; last: {last}"
            return reason, 70
        return self._final

    def retry_at(self) -> float:
        """When the next start may be: at once after the first crash, later after each more."""
        if not self._at:
            return 0.0
        return self._at[-1] + BACKOFF_S[min(len(self._at), len(BACKOFF_S)) - 1]
