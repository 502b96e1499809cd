"""When the next batch should leave: just before the engine runs dry, so that it never waits and late arrivals still join.

How long a batch runs is learnt for each model as `fixed + slope · cost`, by least squares over recent batches, and with it
how far off the estimate usually is: what is hard to foresee is sent earlier. How long before the end is "just before" is
learnt from how long the engine stood idle although work waited: on a busy machine a batch's way to it takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from gpu_server.daemon.request import Batch

LEAD_S = 0.0003
"""How long before the end of one batch the next should leave at least: what its way to the engine and its launch take.

In the first half of what runs none leaves, so that late arrivals join it: a batch of few costs as much as one of many.
"""
MOST_LEAD_S = 0.003
IDLE = 0.01
"""The part of a batch's time that the engine may stand idle before it: less would mean that batches leave too early."""
GAIN = 0.1
BRIEF_S = 0.005
"""Batches that together run no longer have more behind them: the answers of one take as long to share out."""
BRIEF_AHEAD = 2
"""How many such batches there are at most beyond those that the engine runs at a time."""
SHORTEST_S = 0.0002
"""Batches that run no longer are not foreseen: the next would leave at once, small, each at the price of a large one."""
LEARNT = 16
"""Batches of a model after which its times are believed."""
RECENT = 1 / 32
KNEE = 0.97
"""The part of the largest batches' work a second that smaller ones must reach to stand in for them."""


class _Times:
    """How long one model's batches run, by their cost: means, variance and covariance over recent ones."""

    __slots__ = ("batches", "cost", "error", "joint", "seconds", "spread")

    def __init__(self) -> None:
        self.batches = 0
        self.cost = self.seconds = self.spread = self.joint = self.error = 0.0

    def learn(self, cost: int, seconds: float) -> None:
        """Take in one batch; the first ones count equally, later ones more than those long past."""
        self.batches += 1
        part = max(RECENT, 1 / self.batches)
        self.error += part * (abs(seconds - self.estimate(cost)) - self.error)
        off_cost, off_seconds = cost - self.cost, seconds - self.seconds
        self.cost += part * off_cost
        self.seconds += part * off_seconds
        self.spread += part * ((1 - part) * off_cost * off_cost - self.spread)
        self.joint += part * ((1 - part) * off_cost * off_seconds - self.joint)

    def estimate(self, cost: int) -> float:
        """Seconds that a batch of this cost should run."""
        slope = self.joint / self.spread if self.spread and self.joint > 0 else 0.0
        return max(0.0, self.seconds + slope * (cost - self.cost))


class Pace:
    """Foresees the end of what an engine runs, over an injected clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[str, _Times] = {}
        self._last_done = -math.inf
        self._lead_s = LEAD_S

    def learn(self, batch: Batch, seconds: float, *, full: bool = False) -> float:
        """Note that a batch has ended just now, after running for `seconds`; returns what it kept others waiting.

        That is longer by its way to the engine and back, where this machine is busy by much. full: none could have joined
        it late, so that it had better left too early than too late.
        """
        now = self._clock()
        kept_s = now - max(batch.sent, self._last_done)
        if full and batch.waited_since < self._last_done:
            idle_s = min(now - self._last_done - seconds, seconds)
            lead_s = self._lead_s + GAIN * (idle_s - IDLE * seconds)
            self._lead_s = max(LEAD_S, min(lead_s, MOST_LEAD_S))
        self._last_done = now
        self._times.setdefault(batch.model, _Times()).learn(batch.cost, seconds)
        return max(seconds, kept_s)

    def ended(self) -> None:
        """Note that a batch has ended just now whose time says nothing of others."""
        self._last_done = self._clock()

    def estimate(self, model: str, cost: int) -> float | None:
        """Seconds that a batch of this cost should run; None while the model is not known."""
        times = self._times.get(model)
        return times.estimate(cost) if times is not None and times.batches >= LEARNT else None

    def knee(self, model: str, budget: int) -> int:
        """The cost of the shortest batches that do `KNEE` of the work a second that those of `budget` do."""
        fixed, whole = self.estimate(model, 0), self.estimate(model, budget)
        if fixed is None or not whole:
            return budget
        most = budget * KNEE * fixed / (whole - KNEE * (whole - fixed))
        return min(budget, max(budget // 4, int(most)))

    def are_brief(self, running: Collection[Batch]) -> bool:
        """Whether these batches are known to run for so short a time that another should be there when they end."""
        estimates = [self.estimate(batch.model, batch.cost) for batch in running]
        return None not in estimates and sum(filter(None, estimates)) < BRIEF_S

    def due(self, running: Collection[Batch]) -> float | None:
        """When the next batch should be sent behind those `running`, oldest first; None where that cannot be foreseen.

        What has run for twice its time is not foreseen any more: a batch sent behind it would wait closed to late arrivals.
        """
        if not running:
            return -math.inf
        seconds, error = 0.0, 0.0
        for batch in running:
            times = self._times.get(batch.model)
            if times is None or times.batches < LEARNT:
                return None
            seconds += times.estimate(batch.cost)
            error += times.error
        if seconds <= SHORTEST_S:
            return None
        started = max(next(iter(running)).sent, self._last_done)
        if self._clock() > started + 2 * (seconds + error):
            return None
        return started + seconds - 2 * error - min(self._lead_s, seconds / 2)
