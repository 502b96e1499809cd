"""How many workers there should be: pure, fed with samples, no clock and no processes of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

from gpu_server.errors import ConfigError


@dataclass(frozen=True)
class Policy:
    """Bounds and thresholds. Shares are of one worker's time, 0 to 1.

    `aim` lies between the other two, so that the workers chosen for a load are neither too many nor too few for it: a
    steady load moves them once.
    """

    least: int = 1
    most: int = 1
    add_above: float = 0.8
    aim: float = 0.65
    remove_below: float = 0.6
    add_after_s: float = 3.0
    remove_after_s: float = 30.0
    engine_full: float = 0.9
    forwards_waited: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"autoscale: {self.least} … {self.most} is no range of workers; at least 1 is needed"
            )
        if not 0 < self.remove_below < self.aim < self.add_above <= 1:
            raise ConfigError("autoscale: remove_below < aim < add_above ≤ 1 does not hold")


@dataclass(frozen=True)
class Engine:
    """The daemon lately: whether it serves, the share of time a forward ran, its length and the wait before it."""

    ready: bool = True
    busy: float = 0.0
    forward_s: float = 0.0
    queue_wait_s: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One look: seconds on the caller's clock, workers, the share of their time in use, and the engine.

    engine: None where no daemon answers. busiest, idlest: the share of the one that has most to do, and of the other.
    """

    at: float
    workers: int
    busy: float
    engine: Engine | None
    busiest: float = 0.0
    idlest: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What to do and why: `target` is `workers` where they stay although they are busy; `busy` is what was judged."""

    workers: int
    target: int
    reason: str
    busy: float


class Controller:
    """Decides from samples. Adds on a short mean of how busy the workers are, removes on the most of a long while."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._loads: deque[tuple[float, float]] = deque()
        self._begun: float | None = None
        self._workers = 0
        self._uneven_since: float | None = None
        self._held = ""

    def observe(self, sample: Sample) -> Decision | None:
        """Take a sample; what to do now, None for nothing. A reason not to add is told once while they are busy."""
        policy, workers = self._policy, sample.workers
        self._remember(sample)
        if not policy.least <= workers <= policy.most:
            return self._into_bounds(sample)
        busy = self._busy_lately(sample)
        if busy is not None and busy > policy.add_above:
            return self._add(sample, busy)
        if (removal := self._remove(sample)) is not None:
            return removal
        if not self._held and self._long_uneven(sample.at):
            return self._stay(sample, sample.busy, "the load stays with some of the workers")
        if busy is not None and busy < policy.remove_below:
            self._held = ""
        return None

    def _remember(self, sample: Sample) -> None:
        """The load is in workers' worth of time, so it stays true when their number changes; how busy they are does not."""
        if sample.workers != self._workers or self._begun is None:
            self._workers, self._begun, self._uneven_since = sample.workers, sample.at, None
        uneven = sample.busiest > self._policy.add_above and sample.idlest < sample.busiest / 2
        self._uneven_since = (self._uneven_since or sample.at) if uneven else None
        self._loads.append((sample.at, sample.busy * sample.workers))
        while self._loads[0][0] < sample.at - self._policy.remove_after_s:
            self._loads.popleft()

    def _into_bounds(self, sample: Sample) -> Decision | None:
        """Too many for a while is no reason: a reload has the old workers beside the new until they have finished."""
        policy, workers = self._policy, sample.workers
        target = min(max(workers, policy.least), policy.most)
        patience_s = policy.add_after_s if target > workers else policy.remove_after_s
        if self._begun is None or self._begun > sample.at - patience_s:
            return None
        return Decision(workers, target, f"outside {policy.least} … {policy.most}", sample.busy)

    def _busy_lately(self, sample: Sample) -> float | None:
        """The mean of `add_after_s`; None before that many seconds with this number of workers have passed."""
        since = sample.at - self._policy.add_after_s
        if self._begun is None or self._begun > since:
            return None
        loads = [load for at, load in self._loads if at > since]
        return sum(loads) / len(loads) / sample.workers

    def _add(self, sample: Sample, busy: float) -> Decision | None:
        policy, workers = self._policy, sample.workers
        held = _why_not(sample.engine, policy) or ("at the most" if workers == policy.most else "")
        if held:
            return self._stay(sample, busy, held)
        self._held = ""
        # The mean has seconds in it in which the newest workers were only starting and had no connections yet.
        busy = max(busy, sample.busy)
        target = min(policy.most, max(workers + 1, ceil(workers * busy / policy.aim)))
        return Decision(workers, target, "workers are busy", busy)

    def _long_uneven(self, now: float) -> bool:
        """Whether one worker is at its limit, beside one less than half as busy, for as long as a removal takes."""
        return self._uneven_since is not None and self._uneven_since <= now - self._policy.remove_after_s

    def _stay(self, sample: Sample, busy: float, reason: str) -> Decision | None:
        told, self._held = self._held, reason
        return None if told == reason else Decision(sample.workers, sample.workers, reason, busy)

    def _remove(self, sample: Sample) -> Decision | None:
        policy, workers = self._policy, sample.workers
        if (
            workers == policy.least
            or self._loads[0][0] > sample.at - policy.remove_after_s + policy.add_after_s
        ):
            return None
        most = max(load for _, load in self._loads)
        if most > policy.remove_below * (workers - 1):
            return None
        return Decision(workers, max(policy.least, ceil(most / policy.aim)), "fewer would do", most / workers)


def _why_not(engine: Engine | None, policy: Policy) -> str:
    """Why one more worker would not help, "" if it may."""
    if engine is None:
        return "no daemon answers"
    if not engine.ready:
        return "the daemon is not ready"
    # A busy engine alone is no reason: its batches may be small. Requests that let forwards pass them are.
    if engine.busy >= policy.engine_full and engine.queue_wait_s > policy.forwards_waited * engine.forward_s:
        return "the engine is the bottleneck"
    return ""
