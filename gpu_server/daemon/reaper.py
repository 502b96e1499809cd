"""Ends engines that have nothing to do any more, without waiting for them: a driver may hold a process for long."""

from __future__ import annotations

import math
from collections.abc import Callable

from gpu_server.daemon.engine_link import EngineLink

REAP_S = 0.05
END_GRACE_S = 5.0


class Reaper:
    """Engines on their way out; empty when the memory of each is free again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._dying: list[tuple[EngineLink, float]] = []

    def __len__(self) -> int:
        return len(self._dying)

    def end(self, link: EngineLink) -> None:
        """Ask an engine to end, and kill it if it has not after `END_GRACE_S`."""
        link.stop()
        self._take(link, self._clock() + END_GRACE_S)

    def kill(self, link: EngineLink) -> None:
        """End an engine at once."""
        link.kill()
        self._take(link, math.inf)

    def poll(self) -> None:
        """Reap those that have ended; call every `REAP_S` while there are any."""
        left = []
        for link, kill_at in self._dying:
            if link.reap():
                continue
            late = self._clock() >= kill_at
            if late:
                link.kill()
            left.append((link, math.inf if late else kill_at))
        self._dying = left

    def close(self) -> None:
        """Reap all, waiting for each a while and killing it then."""
        for link, _ in self._dying:
            link.close()
        self._dying.clear()

    def _take(self, link: EngineLink, kill_at: float) -> None:
        if not link.reap():
            self._dying.append((link, kill_at))
