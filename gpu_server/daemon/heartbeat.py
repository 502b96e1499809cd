"""What the service manager is told, and when: the start's progress, readiness, load, the stop, and signs of life."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from gpu_server.daemon import systemd
from gpu_server.daemon.systemd import Notifier, extend_timeout, status
from gpu_server.wire.documents import Status

EVERY_S = 1.0
LOAD_EXTENSION_S = 30.0
STOP_EXTENSION_S = 15.0
LATE_S = 5.0

Phase = Literal["", "ready", "reloading", "stopping"]


class Heartbeat:
    """Speaks to the manager at `due` and whenever something visible changes; `due` is infinity where there is none.

    drain_timeout_s: how long a stop may wait for accepted requests.
    """

    def __init__(self, notifier: Notifier, clock: Callable[[], float], drain_timeout_s: float) -> None:
        self._notifier = notifier
        self._clock = clock
        self._drain_timeout_s = drain_timeout_s
        self._interval_s = min(EVERY_S, notifier.watchdog_s / 3) if notifier.watchdog_s else EVERY_S
        self._told: Phase = ""
        self._text = ""
        self._answered = 0
        self._counted_at = clock()
        self.due = clock() if notifier.enabled else math.inf

    def beat(
        self, now_is: Status, next_timer: float | None, *, stopping: bool = False, reloading: bool = False
    ) -> None:
        """Send what is new. A sign of life is part of it only while the supervisor keeps its own timers.

        next_timer: when the supervisor must act at the latest, on the clock. It bounds a load without progress, a
        forward that hangs and a respawn, so one that has passed means that the loop or the engine is stuck.
        stopping: the daemon will end. reloading: other engines are to replace those that serve.
        """
        if not self._notifier.enabled:
            return
        now = self._clock()
        self.due = now + self._interval_s
        phase = self._phase(now_is.state, stopping, reloading)
        text = self._describe(now_is, now, "reloading" if phase == "reloading" else now_is.state)
        lines = [*self._news(phase)]
        if next_timer is None or now - next_timer < LATE_S:
            lines.append("WATCHDOG=1")
        if phase == "reloading" or now_is.state == "loading":
            lines.append(extend_timeout(LOAD_EXTENSION_S))
        if text != self._text:
            lines.append(status(text))
        if lines and self._notifier.send(*lines):
            self._told, self._text = phase, text

    def _phase(self, state: str, stopping: bool, reloading: bool) -> Phase:
        """The service's phase as the manager knows them: once ready it stays so, whatever its engine does."""
        if stopping:
            return "stopping"
        if reloading and self._told:
            return "reloading"
        return "ready" if state == "ready" or self._told else ""

    def _news(self, phase: Phase) -> tuple[str, ...]:
        """What announces a phase that the manager has not been told of."""
        if phase == self._told:
            return ()
        if phase == "stopping":
            return "STOPPING=1", extend_timeout(self._drain_timeout_s + STOP_EXTENSION_S)
        return systemd.reloading() if phase == "reloading" else ("READY=1",)

    def _describe(self, now_is: Status, now: float, name: str) -> str:
        rate = self._rate(now_is, now)
        queue = f"queue {now_is.queue.requests}"
        if now_is.state in ("loading", "degraded"):
            waiting = f", {queue}" if now_is.state == "degraded" else ""
            return f"{now_is.state}: {now_is.phase or 'starting the engine'} ({now_is.progress:.0%}){waiting}"
        if now_is.state == "draining":
            return f"draining: {now_is.queue.requests} open requests"
        count = len(now_is.models)
        return f"{name}: {count} model{'s' if count != 1 else ''}, {queue}, {rate:.0f} req/s"

    def _rate(self, now_is: Status, now: float) -> float:
        """Answers a second since the last beat."""
        answered, passed = now_is.counters.get("success", 0), now - self._counted_at
        rate = (answered - self._answered) / passed if passed > 0 else 0.0
        self._answered, self._counted_at = answered, now
        return rate
