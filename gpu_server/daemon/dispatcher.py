"""When batches leave for the engine: each when the scheduler finds it due, and no more than the engine has room for."""

from __future__ import annotations

import math
from collections.abc import Callable

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.pace import BRIEF_AHEAD
from gpu_server.daemon.scheduler import Scheduler


class Dispatcher:
    """Sends batches to the engine in `link`; to none while that is None."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float], batches_in_flight: int) -> None:
        self.link: EngineLink | None = None
        self._scheduler = scheduler
        self._clock = clock
        self._batches_in_flight = batches_in_flight
        # Until `_settled_until` the answer is `_due_at`, whatever comes, unless `look_again` is called.
        self._due_at: float | None = None
        self._settled_until = -math.inf

    def look_again(self) -> None:
        """Note that a batch has ended or that the engine is another: what was not due may be."""
        self._settled_until = -math.inf

    def dispatch(self) -> float | None:
        """Give the engine what the scheduler finds due; returns when more will be, unless something happens before."""
        link = self.link
        if link is None or not self._scheduler.items:
            return None
        if self._settled_until > self._clock():
            return self._due_at
        while self._has_room(link):
            batch = self._scheduler.due_batch(link.batches.values(), link.models)
            if batch is None:
                self._due_at = self._scheduler.due_at
                self._settled_until = -math.inf if self._due_at is None else self._due_at
                return self._due_at
            now = self._clock()
            for request, start, _ in batch.slices:
                if not start:
                    request.queue_us = int((now - request.arrived) * 1e6)
            batch.sent, batch.version = now, link.models[batch.model].version
            batch.generation = link.generation
            link.send(batch)
        self._due_at, self._settled_until = None, math.inf
        return None

    def _has_room(self, link: EngineLink) -> bool:
        """Whether the engine may be sent another batch: beyond those it runs at a time, some where they are soon done."""
        ahead = len(link.batches) - self._batches_in_flight
        return ahead < 0 or (ahead < BRIEF_AHEAD and self._scheduler.are_brief(link.batches.values()))
