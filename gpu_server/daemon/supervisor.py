"""Keeps the engine process alive: starts it, watches its load, respawns it with back-off, gives up with a reason."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Literal

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.wire.documents import EngineStatus

log = logging.getLogger(__name__)

SupervisorState = Literal["loading", "ready", "backoff", "failed", "stopping"]
BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
CRASHES = 5
CRASH_WINDOW_S = 300.0
REAP_S = 0.05


class Supervisor:
    """Owns the current engine link.

    spawn: makes a new link from its ordinal. on_ready, on_lost: called with the link when it can take batches, and when it
    can no more (its batches are still in it). `failed` is final: `failure` and `exit_code` say why.
    """

    def __init__(
        self,
        spawn: Callable[[int], EngineLink],
        clock: Callable[[], float],
        *,
        load_timeout_s: float,
        batch_timeout_s: float,
        on_ready: Callable[[EngineLink], None],
        on_lost: Callable[[EngineLink], None],
    ) -> None:
        self._spawn = spawn
        self._clock = clock
        self._load_timeout_s = load_timeout_s
        self._batch_timeout_s = batch_timeout_s
        self._dying: list[EngineLink] = []
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._crashes: deque[float] = deque()
        self._spawned = 0
        self._retry_at = 0.0
        self._was_ready = False
        self._status: EngineStatus | None = None
        self.state: SupervisorState = "loading"
        self.link: EngineLink | None = None
        self.restarts = 0
        self.failure = ""
        self.exit_code = 0

    def start(self) -> None:
        """Spawn the first engine."""
        self._respawn()

    def poll(self) -> None:
        """Take in what the engine said, its death, and timers."""
        self._dying = [link for link in self._dying if not link.reap()]
        link = self.link
        if link is None:
            if self.state == "backoff" and self._clock() >= self._retry_at:
                self.restarts += 1
                self._respawn()
            return
        link.poll_pipe()
        if link.state == "ready" and self.state == "loading":
            self._became_ready(link)
        elif link.state == "loading" and self._clock() - link.heard > self._load_timeout_s:
            log.error(
                "engine load stalled", extra={"phase": link.event.phase, "limit_s": self._load_timeout_s}
            )
            link.kill()
        elif link.state == "ready" and self._clock() - link.busy_since() > self._batch_timeout_s:
            log.error("a forward hangs", extra={"limit_s": self._batch_timeout_s, "pid": link.pid})
            link.kill()
        elif link.state in ("dead", "failed"):
            self._ended(link)

    def next_timer(self) -> float | None:
        """When `poll` must run although nothing happens, on the clock; None if never."""
        due = []
        if self._dying:
            due.append(self._clock() + REAP_S)
        if self.state == "backoff":
            due.append(self._retry_at)
        elif self.state == "loading" and self.link is not None:
            due.append(self.link.heard + self._load_timeout_s)
        elif self.state == "ready" and self.link is not None and self.link.batches:
            due.append(self.link.busy_since() + self._batch_timeout_s)
        return min(due, default=None)

    def status(self) -> EngineStatus | None:
        """The engine for the status document: the current one, or the last one while there is none."""
        if self.link is not None:
            self._status = self.link.status(self.restarts)
        elif self._status is not None:
            self._status.state = "failed" if self.state == "failed" else "backoff"
            self._status.in_flight = 0
        return self._status

    def stop(self) -> None:
        """End the engine and reap it."""
        self.state = "stopping"
        if self.link is not None:
            self.link.stop()
            self._dying.append(self.link)
            self.link = None
        for link in self._dying:
            link.close()
        self._dying.clear()

    def _respawn(self) -> None:
        self.state = "loading"
        self.link = self._spawn(self._spawned)
        self._spawned += 1

    def _became_ready(self, link: EngineLink) -> None:
        self.state = "ready"
        self._was_ready = True
        log.info(
            "engine ready",
            extra={"pid": link.pid, "device": link.event.device, "models": ",".join(link.models)},
        )
        self._on_ready(link)

    def _ended(self, link: EngineLink) -> None:
        event = link.event
        reason = event.message if link.state == "failed" else _describe_exit(link)
        self.status()
        self.link = None
        self._on_lost(link)
        if link.state == "failed" and event.permanent:
            self._give_up(reason, event.exit_code)
        else:
            self._schedule(reason)
        # Killed and left to die: a process in the driver's hands may take long, and nobody is to wait for it.
        link.kill()
        if not link.reap():
            self._dying.append(link)

    def _schedule(self, reason: str) -> None:
        now = self._clock()
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > CRASH_WINDOW_S:
            self._crashes.popleft()
        if len(self._crashes) >= CRASHES:
            self._give_up(f"the engine failed {CRASHES} times in {CRASH_WINDOW_S:.0f} s; last: {reason}", 70)
            return
        delay = BACKOFF_S[min(len(self._crashes) - 1, len(BACKOFF_S) - 1)]
        log.error(
            "engine lost", extra={"reason": reason, "respawn_in_s": delay, "crashes": len(self._crashes)}
        )
        self.state, self._retry_at = "backoff", now + delay

    def _give_up(self, reason: str, exit_code: int) -> None:
        self.state, self.failure, self.exit_code = "failed", reason, exit_code or 70
        if self._was_ready:
            log.error("engine will not be respawned", extra={"reason": reason})


def _describe_exit(link: EngineLink) -> str:
    code = link.exit_code() or 0
    return f"killed by signal {-code}" if code < 0 else f"exited with code {code}"
