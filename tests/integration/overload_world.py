"""More requests than the model Steady can answer, and as many as it can: what comes of them, for tests of overload."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from fault_world import RECOVERED_S, rss_bytes
from metronome import Metronome
from running_daemon import RunningDaemon

from gpu_server.aio import AsyncClient
from gpu_server.errors import DeadlineExceeded, Overloaded

BATCH_S = 0.2
CAPACITY = 16 / BATCH_S
"""Requests a second that Steady could answer if nothing but its forwards took time."""
DEADLINE_S = 2.0
SETTLED_S = 2.0
"""After so long the queue is as long as it will be."""
PEAK_S = 2.0
CALLERS = 64
STRETCH_S = 2.5
ATTEMPTS = 5
"""So often each is measured anew before one is taken in which the machine stalled."""


@dataclass
class Seen:
    """What became of requests: how many had which outcome, when each right answer was asked for and came, and when each
    that was late was asked for."""

    outcomes: Counter[str] = field(default_factory=Counter)
    right: list[tuple[float, float]] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    def per_second(self, since: float, until: float) -> float:
        """Right answers a second between two moments of the monotonic clock, from batch to batch: each brings many."""
        came = sorted(at for _, at in self.right if since <= at < until)
        return sum(at > came[0] + BATCH_S / 2 for at in came) / (came[-1] - came[0])

    def took_s(self, since: float, until: float) -> list[float]:
        """How long those took that were asked between two moments."""
        return [at - asked for asked, at in self.right if since <= asked < until]


def assert_goodput_holds(running: RunningDaemon, seconds: float) -> None:
    """Ask Steady for three times what it can answer: what it answers is compared with its own best, before and after.

    Pass mark: goodput ≥ 95 % of that, at most 1 % of what was accepted late, the rest refused with a time to come back
    after, memory flat. Goodput is that of the stretches of 2.5 s in which the machine did not stall, lateness that of
    requests during which it did not.
    """
    with Metronome(every_core=True) as clock:
        peak = best(running.endpoint, clock)
        for _ in range(ATTEMPTS):
            before = rss_bytes(running.pid)
            begun = time.monotonic() + SETTLED_S
            seen = asyncio.run(paced(running.endpoint, 3 * CAPACITY, SETTLED_S + seconds))
            grown = rss_bytes(running.pid) - before
            stretches = [begun + STRETCH_S * number for number in range(int(seconds / STRETCH_S))]
            calm = [at for at in stretches if clock.calm(at - RECOVERED_S, at + STRETCH_S)]
            if 2 * len(calm) >= len(stretches):
                break
        peak = (peak + best(running.endpoint, clock)) / 2
    goodput = statistics.mean(seen.per_second(at, at + STRETCH_S) for at in calm or stretches)
    right = sum(clock.calm(asked - RECOVERED_S, asked + DEADLINE_S) for asked, _ in seen.right)
    late = sum(clock.calm(asked - RECOVERED_S, asked + DEADLINE_S) for asked in seen.late)
    assert peak > CAPACITY / 2
    assert goodput >= 0.95 * peak, (goodput, peak)
    assert set(seen.outcomes) <= {"right", "refused", "late"}
    assert seen.outcomes["refused"] > CAPACITY * seconds
    assert late <= 0.01 * (right + late)
    assert grown < 8 << 20


def best(endpoint: str, clock: Metronome) -> float:
    """Right answers a second while it is asked again with every answer, and the machine does not stall."""
    for _ in range(ATTEMPTS):
        begun = time.monotonic()
        peak = asyncio.run(saturated(endpoint))
        if clock.calm(begun, time.monotonic()):
            break
    return peak


async def saturated(endpoint: str) -> float:
    """Ask again with every answer; right answers a second."""
    seen = Seen()
    begun = time.monotonic() + 0.5

    async def caller(first: int) -> None:
        for value in count(first):
            if time.monotonic() > begun + PEAK_S:
                return
            await _ask(client, value, 30.0, seen)

    async with AsyncClient(endpoint) as client, asyncio.TaskGroup() as asking:
        for number in range(CALLERS):
            asking.create_task(caller(1000 * number))
    assert set(seen.outcomes) == {"right"}
    return seen.per_second(begun, begun + PEAK_S)


async def paced(endpoint: str, per_second: float, seconds: float, deadline_s: float = DEADLINE_S) -> Seen:
    """Ask so often, whether or not it answers."""
    seen = Seen()
    async with AsyncClient(endpoint) as client, asyncio.TaskGroup() as asking:
        begun = time.monotonic()
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(begun + number / per_second - time.monotonic())
            asking.create_task(_ask(client, number, deadline_s, seen))
    return seen


async def _ask(client: AsyncClient, value: int, deadline_s: float, seen: Seen) -> None:
    asked = time.monotonic()
    try:
        answer = await client.infer("Steady", x=[value], timeout_s=deadline_s)
    except Overloaded as error:
        seen.outcomes["refused" if error.retry_after_s else "refused for ever"] += 1
    except DeadlineExceeded:
        seen.outcomes["late"] += 1
        seen.late.append(asked)
    else:
        right = answer["y"].tolist() == [2 * value + 1]  # type: ignore[union-attr]
        seen.outcomes["right" if right else "wrong"] += 1
        seen.right.append((asked, time.monotonic()))
