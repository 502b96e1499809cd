"""The loop: measures the workers of one Gunicorn master, asks the controller, sends the signals, and logs why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from gpu_server.autoscale.controller import Controller, Decision, Engine, Sample
from gpu_server.autoscale.processes import Master

BETWEEN_SIGNALS_S = 0.1
"""Two signals of a kind at once would count as one."""
SETTLE_S = 40.0
"""Longest wait for a number of workers: one that was told to end finishes what it has first."""

log = logging.getLogger(__name__)


class Load(Protocol):
    """What is asked of the daemon: the engine, and then the HTTP requests that a worker holds."""

    held: float

    def read(self) -> Engine | None:
        """The engine lately."""


class Autoscaler:
    """Keeps one master's workers as many as the load needs. threads: of a worker, 0 where that does not bound it."""

    def __init__(
        self,
        master: Master,
        controller: Controller,
        load: Load,
        *,
        threads: int = 0,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._master = master
        self._controller = controller
        self._load = load
        self._threads = threads
        self._every_s = every_s
        self._clock = clock
        self._sleep = sleep
        self._at = clock()
        self._used = master.active_s()

    def run(self) -> None:
        """Until the master ends."""
        while self._master.alive():
            self._sleep(self._every_s)
            self.turn()

    def turn(self) -> Decision | None:
        """Look once, and do what is decided."""
        sample = self._measure()
        if sample is None:
            return None
        decision = self._controller.observe(sample)
        if decision is not None:
            _tell(decision, sample)
            self._move(decision)
        return decision

    def _measure(self) -> Sample | None:
        """A sample since the last look; None if the workers are not the same ones, as some have just started."""
        before, began = self._used, self._at
        now, used = self._clock(), self._master.active_s()
        self._at, self._used = now, used
        if not used or used.keys() != before.keys():
            return None
        engine = self._load.read()
        passed = max(now - began, 1e-3)
        shares = [max(0.0, used[pid] - before[pid]) / passed for pid in used]
        busy = sum(shares) / len(shares)
        if self._threads:
            busy = max(busy, self._load.held / self._threads)
        return Sample(now, len(used), min(1.0, busy), engine, min(1.0, max(shares)), min(1.0, min(shares)))

    def _move(self, decision: Decision) -> None:
        steps = decision.target - decision.workers
        for _ in range(abs(steps)):
            self._master.signal(steps > 0)
            self._sleep(BETWEEN_SIGNALS_S)
        give_up = self._clock() + SETTLE_S
        while steps and self._clock() < give_up and self._master.alive():
            self._used, self._at = self._master.active_s(), self._clock()
            if len(self._used) == decision.target:
                return
            self._sleep(BETWEEN_SIGNALS_S)


def _tell(decision: Decision, sample: Sample) -> None:
    values: dict[str, object] = {
        "workers": decision.workers,
        "target": decision.target,
        "busy": decision.busy,
    }
    if sample.engine is not None:
        values |= {"engine_busy": sample.engine.busy, "queue_wait_s": sample.engine.queue_wait_s}
    event = "workers stay" if decision.target == decision.workers else "workers change"
    log.info(event, extra=values | {"reason": decision.reason})
