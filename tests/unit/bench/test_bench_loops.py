"""Both loops in virtual time, against services whose latencies are known exactly."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import cycle, pairwise, repeat

import pytest
from virtual_time import FakeConnection, VirtualClock

from gpu_server.bench.loops import ClosedLoop, OpenLoop, Tally

BEGIN_S = 110.0


def closed(times: list[float], connections: int, seconds: float) -> Tally:
    clock = VirtualClock()
    tally = Tally(BEGIN_S, BEGIN_S + seconds)
    loop = ClosedLoop(tally, [b"x"], clock)
    service = cycle(times)
    loop.start([FakeConnection(clock, lambda: next(service), loop.ended) for _ in range(connections)])
    clock.run_until(BEGIN_S + seconds + 60)
    return tally


def opened(
    rate: float, service_s: Callable[[], float], connections: int, seconds: float
) -> tuple[Tally, OpenLoop, list[FakeConnection]]:
    clock = VirtualClock()
    tally = Tally(BEGIN_S, BEGIN_S + seconds)
    loop = OpenLoop(tally, [b"x"], clock, rate, random.Random(5))
    made = [FakeConnection(clock, service_s, loop.ended) for _ in range(connections)]
    loop.start(made)
    clock.run_until(BEGIN_S + seconds + 10_000)
    assert loop.drained
    return tally, loop, made


def test_closed_loop_sees_the_latencies_of_the_service() -> None:
    # One in ten takes 1 s, the others 0.1 s: 1.9 s for each round of ten.
    tally = closed([*repeat(0.1, 9), 1.0], connections=1, seconds=190.0)
    latency = tally.outcomes["200"]
    assert abs(latency.count - 1000) <= 10
    assert latency.quantile(0.5) == pytest.approx(0.1, rel=0.006)
    assert latency.quantile(0.89) == pytest.approx(0.1, rel=0.006)
    assert latency.quantile(0.91) == pytest.approx(1.0, rel=0.006)


def test_closed_loop_goes_as_fast_as_its_connections() -> None:
    assert closed([0.5], connections=8, seconds=100.0).outcomes["200"].count == 8 * 200


def test_the_warm_up_and_the_end_do_not_count() -> None:
    tally = closed([1.5], connections=1, seconds=3.0)
    # Answers at 101.5, 103, …, 110.5, 112, 113.5; the window is from 110 to 113.
    assert tally.outcomes["200"].count == 2
    assert tally.answers == 9


def test_open_loop_offers_its_rate_whatever_the_service_does() -> None:
    _, slow, _ = opened(50.0, lambda: 2.0, connections=4, seconds=100.0)
    _, fast, _ = opened(50.0, lambda: 0.0, connections=4, seconds=100.0)
    assert slow.offered == fast.offered
    # Poisson: 5,000 expected, standard deviation 71.
    assert abs(fast.offered - 5000) < 300
    assert fast.waited == 0
    assert slow.waited > 4900


def test_open_loop_gaps_are_exponential() -> None:
    _, _, (connection,) = opened(20.0, lambda: 0.0, connections=1, seconds=300.0)
    due = [since for _, since in connection.sent]
    gaps = [b - a for a, b in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.1)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.2)


def test_a_stall_is_in_the_latency_of_every_request_that_was_due_meanwhile() -> None:
    """The service answers at once, except for 10 s in which it answers nothing."""
    clock = VirtualClock()
    tally = Tally(BEGIN_S, BEGIN_S + 100.0)
    loop = OpenLoop(tally, [b"x"], clock, 100.0, random.Random(5))
    stall = (140.0, 150.0)

    def service_s() -> float:
        now = clock.time()
        return stall[1] - now if stall[0] <= now < stall[1] else 0.0

    connections = [FakeConnection(clock, service_s, loop.ended) for _ in range(2)]
    loop.start(connections)
    clock.run_until(BEGIN_S + 200.0)
    latency = tally.outcomes["200"]
    due = [since for c in connections for _, since in c.sent if BEGIN_S <= since < BEGIN_S + 100.0]
    stalled = [stall[1] - since for since in due if stall[0] <= since < stall[1]]
    assert len(stalled) > 800
    assert latency.count == loop.offered == len(due)
    assert latency.sum_s == pytest.approx(sum(stalled), rel=1e-6)
    assert latency.max_s == pytest.approx(max(stalled))
    assert loop.waited == len(stalled) - 2


def test_open_loop_latency_has_the_wait_for_a_connection() -> None:
    """One connection at 0.9 of its capacity is an M/D/1 queue, whose mean wait is known."""
    tally, _, _ = opened(0.9, lambda: 1.0, connections=1, seconds=200_000.0)
    utilisation = tally.outcomes["200"].count / 200_000.0
    wait = utilisation / (2 * (1 - utilisation))
    assert tally.outcomes["200"].mean_s == pytest.approx(1.0 + wait, rel=0.1)


def test_requests_that_wait_too_long_are_given_up() -> None:
    clock = VirtualClock()
    tally = Tally(BEGIN_S, BEGIN_S + 10.0)
    loop = OpenLoop(tally, [b"x"], clock, 10.0, random.Random(5))
    loop.start([FakeConnection(clock, lambda: 1000.0, loop.ended)])
    clock.run_until(BEGIN_S + 10.0)
    assert loop.waited == loop.offered > 0
    loop.expire(clock.time() - 5.0)
    given_up = tally.outcomes["timeout"]
    assert 0 < given_up.count < loop.offered
    assert given_up.max_s <= 10.0
    loop.expire(clock.time())
    assert tally.outcomes["timeout"].count == loop.offered
    assert not loop.drained


def test_errors_are_counted_apart() -> None:
    tally = Tally(0.0, 1.0)
    for outcome in ("200", "204", "429", "timeout"):
        tally.add(outcome, 0.1, 0.2, counts=outcome != "204")
    assert (tally.answers, tally.errors, sorted(tally.outcomes)) == (4, 2, ["200", "429", "timeout"])
    assert tally.outcomes["429"].max_s == pytest.approx(0.1)


def test_what_an_overloaded_service_does_in_the_window_is_its_rate() -> None:
    """It can do 2 a second and is offered 50: every request ends at last, but 2 a second ended in the window."""
    tally, loop, _ = opened(50.0, lambda: 2.0, connections=4, seconds=100.0)
    assert tally.good == pytest.approx(200, abs=4)
    assert tally.outcomes["200"].count == loop.offered > 4500
