"""Keeps the engine process alive, and puts another in its place when the models are to change.

A change spawns a successor beside the engine. Once it has loaded, warmed up and passed its own checks it takes over; the old
engine finishes what it has and ends. Where both do not fit in memory the old one goes first, and comes back if the new one
fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from gpu_server.daemon.change import Change, Models, Phase
from gpu_server.daemon.crashes import Crashes
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.reaper import REAP_S, Reaper
from gpu_server.errors import Conflict, LoadFailed, ModelLoading, RemoteError
from gpu_server.wire.documents import EngineStatus

log = logging.getLogger(__name__)

SupervisorState = Literal["loading", "ready", "holding", "backoff", "failed", "stopping"]
Spawn = Callable[[Models, str, bool], EngineLink]
"""Makes a link from its models, the device it must use ("" before the first engine has chosen one), and whether
another engine serves while it loads."""
END_LIMIT_S = 30.0


class Supervisor:
    """Owns the engine links: the current one, its successor while that loads, and the one it has replaced.

    on_ready, on_lost: called with a link when it is to take batches, and when it can no more (its batches are still in it).
    on_hold: called when the queue must wait, because the current engine is to end. `failed` is final: `failure` and
    `exit_code` say why. `links` are those to receive from, a new tuple whenever they change.
    """

    def __init__(
        self,
        spawn: Spawn,
        clock: Callable[[], float],
        models: Models,
        *,
        load_timeout_s: float,
        batch_timeout_s: float,
        on_ready: Callable[[EngineLink], None],
        on_lost: Callable[[EngineLink], None],
        on_hold: Callable[[], None],
    ) -> None:
        self._spawn = spawn
        self._clock = clock
        self._load_timeout_s = load_timeout_s
        self._batch_timeout_s = batch_timeout_s
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_hold = on_hold
        self._crashes = Crashes()
        self._reaper = Reaper(clock)
        self._polled = self._retry_at = 0.0
        self._was_ready = False
        self._reason = ""
        self._device = ""
        self._generation = 0
        self._status: EngineStatus | None = None
        self._change: Change | None = None
        self._killed: set[EngineLink] = set()
        self.models = models
        self.state: SupervisorState = "loading"
        self.link: EngineLink | None = None
        self.successor: EngineLink | None = None
        self.retired: EngineLink | None = None
        self.links: tuple[EngineLink, ...] = ()
        self.restarts = 0
        self.failure = ""
        self.exit_code = 0

    def start(self) -> None:
        """Spawn the first engine."""
        self._respawn()

    def change(
        self, models: Models, done: Callable[[RemoteError | None], None], *, drain_first: bool = False
    ) -> None:
        """Serve `models` instead, their files read anew. `done` gets None, or why the old ones are served still.

        drain_first: end the old engine before the new one starts, because there is no room for both.
        Raises Conflict while another change is under way and ModelLoading before the first engine is ready.
        """
        if self._change is not None:
            raise Conflict("another change of the models is under way", {"phase": self._change.phase})
        if not self._was_ready:
            raise ModelLoading("the models are still loading; change them when they are ready")
        now = self._clock()
        self._generation += 1
        log.info("changing models", extra={"models": ",".join(m.name for m in models), "alone": drain_first})
        self._change = Change(models, done, now)
        if self.link is None:
            self.state = "loading"
        if drain_first:
            self._make_room(self._change)
        else:
            self._spawn_successor(self._change)

    @property
    def changing(self) -> bool:
        """Whether a change is under way."""
        return self._change is not None

    def cancel_change(self, error: RemoteError) -> None:
        """Give up a change while the old engine can go on alone; one that is past that is carried through."""
        change = self._change
        if change is None or self.link is None or change.phase not in ("loading", "draining"):
            return
        if self.successor is not None:
            self._reaper.kill(self.successor)
            self.successor = None
        self._end_change(change, error)
        if self.state == "holding":
            self.state = "ready"
            self._on_ready(self.link)

    def poll(self) -> None:
        """Take in what the engines said, their deaths, and timers."""
        self._polled = self._clock()
        self._reaper.poll()
        if self.link is not None:
            self._poll_current(self.link)
        elif self.state == "backoff" and self._clock() >= self._retry_at:
            self.restarts += 1
            self._respawn()
        if self.retired is not None:
            self._poll_retired(self.retired)
        if self._change is not None:
            self._poll_change(self._change)

    def pressing(self) -> bool:
        """Whether `poll` has to look although no descriptor and no timer says so: answers of an engine can be the sign."""
        if self.state == "loading" or self._change is None:
            return self.state == "loading"
        loaded = self.successor is not None and self.successor.state == "ready"
        leaving = self.link if self._change.phase == "draining" else self.retired
        return loaded or (leaving is not None and not leaving.batches)

    def next_timer(self) -> float | None:
        """When `poll` must run although nothing happens, on the clock; None if never."""
        due = []
        if self._reaper or (self._change is not None and self._change.phase != "loading"):
            due.append(self._polled + REAP_S)
        if self.state == "backoff":
            due.append(self._retry_at)
        for link in self.links:
            if link in self._killed:
                # Its end is told by its descriptor; a driver may take seconds over it.
                continue
            if link.state == "loading":
                due.append(link.heard + self._load_timeout_s)
            elif link.batches:
                due.append(link.busy_since() + self._batch_timeout_s)
        return min(due, default=None)

    def status(self) -> EngineStatus | None:
        """The current engine for the status document, or the last one while there is none."""
        if self.link is not None:
            self._status = self.link.status(self.restarts)
        elif self._status is not None:
            self._status.state = "failed" if self.state == "failed" else "backoff"
            self._status.in_flight = 0
            self._status.error = self.failure or self._reason
        return self._status

    def statuses(self) -> tuple[EngineStatus, ...]:
        """Every engine for the status document: the current one, then its successor and the one it has replaced."""
        current = self.status()
        shown = []
        if current is not None and (self.link is not None or self.successor is None):
            shown.append(current)
        if self.successor is not None:
            shown.append(self.successor.status(self.restarts))
        if self.retired is not None:
            shown.append(self.retired.status(self.restarts, "stopping"))
        return tuple(shown)

    def stop(self) -> None:
        """End every engine and reap it."""
        self.state = "stopping"
        if self.successor is not None:
            self.successor.kill()
        for link in self.links:
            link.stop()
        for link in self.links:
            link.close()
        self._reaper.close()
        self.link = self.successor = self.retired = self._change = None
        self._note_links()

    def _respawn(self) -> None:
        self.state = "loading"
        try:
            self.link = self._new_link(self.models)
        except OSError as error:
            self._reason = _no_engine(error)
            self._crashes.note(self._clock())
            self._plan_respawn()
        self._note_links()

    def _new_link(self, models: Models) -> EngineLink:
        link = self._spawn(models, self._device, self.link is not None)
        link.generation = self._generation
        return link

    def _note_links(self) -> None:
        self.links = tuple(x for x in (self.link, self.successor, self.retired) if x is not None)
        self._killed &= set(self.links)

    def _poll_current(self, link: EngineLink) -> None:
        link.poll_pipe()
        if link.state == "ready" and self.state == "loading":
            self._became_ready(link)
        elif link.state in ("dead", "failed"):
            self._ended(link)
        else:
            self._kill_if_stuck(link)

    def _poll_retired(self, link: EngineLink) -> None:
        link.poll_pipe()
        if link.state in ("dead", "failed"):
            log.error("a replaced engine was lost", extra={"reason": link.why_ended()})
            self.retired = None
            self._on_lost(link)
            self._reaper.kill(link)
        elif not link.batches:
            self.retired = None
            self._reaper.end(link)
        else:
            self._kill_if_stuck(link)
        self._note_links()

    def _kill_if_stuck(self, link: EngineLink) -> None:
        now = self._clock()
        if link in self._killed:
            return
        if link.state == "loading" and now - link.heard > self._load_timeout_s:
            limit_s = self._load_timeout_s
            log.error("engine load stalled", extra={"phase": link.event.phase, "limit_s": limit_s})
        elif link.state != "loading" and now - link.busy_since() > self._batch_timeout_s:
            log.error("a forward hangs", extra={"limit_s": self._batch_timeout_s, "pid": link.pid})
        else:
            return
        link.kill()
        self._killed.add(link)

    def _became_ready(self, link: EngineLink) -> None:
        self.state = "ready"
        self._was_ready = True
        self._device = link.event.device.partition(" ")[0]
        self._crashes.forget_words()
        log.info(
            "engine ready",
            extra={"pid": link.pid, "device": link.event.device, "models": ",".join(link.models)},
        )
        self._on_ready(link)

    def _ended(self, link: EngineLink) -> None:
        self._reason = link.why_ended()
        if link.state == "failed":
            self._crashes.judge(link.event, self.state == "loading")
        self.status()
        self.link = None
        self._on_lost(link)
        self._crashes.note(self._clock())
        if self._change is None or self._change.phase == "retiring":
            self._plan_respawn()
        else:
            # Another engine is on its way: it is what everyone waits for now.
            self.state = "loading"
        self._reaper.kill(link)
        self._note_links()

    def _plan_respawn(self) -> None:
        """With no engine left and none coming: start the current set of models again, later or never."""
        final = self._crashes.final(self._reason)
        if final is not None:
            self._give_up(*final)
        else:
            now = self._clock()
            self._retry_at = max(now, self._crashes.retry_at())
            delay = self._retry_at - now
            log.error(
                "engine lost",
                extra={"reason": self._reason, "respawn_in_s": delay, "crashes": len(self._crashes)},
            )
            self.state = "backoff"

    def _give_up(self, reason: str, exit_code: int) -> None:
        self.state, self.failure, self.exit_code = "failed", reason, exit_code or 70
        if self._was_ready:
            log.error("engine will not be respawned", extra={"reason": reason})

    def _poll_change(self, change: Change) -> None:
        if change.phase == "loading" and self.successor is not None:
            self._poll_successor(change, self.successor)
        elif change.phase == "draining" and (self.link is None or not self.link.batches):
            self._end_current(change)
        elif change.phase == "ending" and self._all_gone(change):
            self._spawn_successor(change)
        elif change.phase == "retiring" and self.retired is None and self._all_gone(change):
            log.info("models changed", extra={"took_s": round(self._clock() - change.started, 3)})
            self._end_change(change, None)

    def _poll_successor(self, change: Change, link: EngineLink) -> None:
        link.poll_pipe()
        if link.state == "ready":
            self._take_over(change, link)
        elif link.state in ("dead", "failed"):
            self._successor_failed(change, link)
        else:
            self._kill_if_stuck(link)

    def _spawn_successor(self, change: Change) -> None:
        self._enter(change, "loading")
        change.alone = self.link is None
        try:
            self.successor = self._new_link(change.models)
        except OSError as error:
            self._change_failed(change, _no_engine(error))
        self._note_links()

    def _take_over(self, change: Change, link: EngineLink) -> None:
        old, self.link, self.successor = self.link, link, None
        self.models = change.models
        self._became_ready(link)
        if old is not None and old.state == "ready":
            self.retired = old
        elif old is not None:
            self._reaper.kill(old)
        self._enter(change, "retiring")

    def _successor_failed(self, change: Change, link: EngineLink) -> None:
        reason = link.why_ended()
        no_room = link.state == "failed" and link.event.fault == "memory"
        self.successor = None
        self._reaper.kill(link)
        if no_room and not change.alone:
            log.warning("no room for two engines", extra={"reason": reason})
            self._make_room(change)
            return
        self._change_failed(change, reason)

    def _change_failed(self, change: Change, reason: str) -> None:
        log.error("change of models failed", extra={"reason": reason})
        self._end_change(change, LoadFailed(reason))
        if self.link is None:
            self._reason = reason
            self._plan_respawn()

    def _make_room(self, change: Change) -> None:
        """Let the current engine finish what it has and nothing more; the queue waits for the next one."""
        self._enter(change, "draining")
        self._on_hold()
        if self.link is None or not self.link.batches:
            self._end_current(change)
        else:
            self.state = "holding"

    def _end_current(self, change: Change) -> None:
        if self.link is not None:
            self.status()
            self._reaper.end(self.link)
            self.link = None
        self.state = "loading"
        self._enter(change, "ending")

    def _all_gone(self, change: Change) -> bool:
        """Whether the memory of ended engines is free again; one that cannot die is not waited for for ever."""
        return not self._reaper or self._clock() - change.phase_since > END_LIMIT_S

    def _enter(self, change: Change, phase: Phase) -> None:
        change.phase, change.phase_since = phase, self._clock()
        self._note_links()

    def _end_change(self, change: Change, error: RemoteError | None) -> None:
        self._change = None
        self._note_links()
        change.done(error)


def _no_engine(error: OSError) -> str:
    """There is no process, memory or descriptor left for one."""
    return f"no engine process could be started: {error.strerror or error}"
