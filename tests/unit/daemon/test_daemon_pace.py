"""When the next batch is due: learnt from batches, earlier where the estimate is poor, None while it is not known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from daemon_fakes import Clock

from gpu_server.daemon.pace import KNEE, LEAD_S, LEARNT, SHORTEST_S, Pace
from gpu_server.daemon.request import Batch


def batch(cost: int, sent: float = 0.0, model: str = "m") -> Batch:
    made = Batch(1, model, {}, sent)
    made.cost, made.sent = cost, sent
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taught(clock: Clock, noise: float = 0.0) -> Pace:
    """A pace that has seen batches of 1 ms and 1 µs a token."""
    pace, dice = Pace(clock), random.Random(0)
    for _ in range(300):
        cost = dice.randrange(10, 5000)
        pace.learn(batch(cost), (1e-3 + cost * 1e-6) * (1 + dice.uniform(-noise, noise)))
    return pace


def test_an_idle_engine_gets_the_next_batch_at_once(clock: Clock) -> None:
    assert Pace(clock).due([]) == -math.inf


def test_until_a_model_is_known_nothing_is_foreseen(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(LEARNT):
        assert pace.due([batch(100)]) is None
        pace.learn(batch(100), 1e-3)
    assert pace.due([batch(100)]) is not None
    assert pace.due([batch(100), batch(100, model="other")]) is None


@pytest.mark.parametrize(("seconds", "foreseen"), [(0.9 * SHORTEST_S, False), (1.1 * SHORTEST_S, True)])
def test_a_batch_too_short_for_it_is_not_foreseen(clock: Clock, seconds: float, foreseen: bool) -> None:
    pace = Pace(clock)
    for _ in range(LEARNT):
        pace.learn(batch(100), seconds)
    assert (pace.due([batch(100)]) is not None) is foreseen


@pytest.mark.parametrize("cost", [10, 1000, 4000])
def test_the_next_batch_is_due_just_before_the_running_ones_end(clock: Clock, cost: int) -> None:
    pace = taught(clock)
    clock.advance(5)
    seconds = 1e-3 + cost * 1e-6
    assert pace.due([batch(cost, clock.now)]) == pytest.approx(clock.now + seconds - LEAD_S, abs=2e-5)
    both = pace.due([batch(cost, clock.now), batch(1000, clock.now)])
    assert both == pytest.approx(clock.now + seconds + 2e-3 - LEAD_S, abs=2e-5)


def test_a_batch_sent_ahead_starts_when_the_one_before_it_ends(clock: Clock) -> None:
    pace = taught(clock)
    sent = clock.now
    clock.advance(5)
    pace.learn(batch(1000, sent), 2e-3)
    assert pace.due([batch(1000, sent)]) == pytest.approx(clock.now + 2e-3 - LEAD_S, abs=2e-5)


def test_what_is_hard_to_foresee_is_sent_earlier(clock: Clock) -> None:
    running = [batch(4000, clock.now)]
    sure, unsure = taught(clock).due(running), taught(clock, noise=0.3).due(running)
    assert sure is not None
    assert unsure is not None
    assert unsure < sure - 5e-4


def test_batches_of_one_size_are_enough(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(LEARNT):
        pace.learn(batch(100), 3e-3)
    assert pace.due([batch(200, clock.now)]) == pytest.approx(clock.now + 3e-3 - LEAD_S, abs=1e-3)


def test_what_runs_far_longer_than_foreseen_is_not_foreseen(clock: Clock) -> None:
    pace = taught(clock)
    clock.advance(5)
    running = [batch(1000, clock.now)]
    clock.advance(3e-3)
    assert pace.due(running) is not None
    clock.advance(3e-3)
    assert pace.due(running) is None


def test_half_of_a_short_batch_passes_before_the_next_leaves(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(LEARNT):
        pace.learn(batch(100), LEAD_S)
    clock.advance(5)
    assert pace.due([batch(100, clock.now)]) == pytest.approx(clock.now + LEAD_S / 2, abs=1e-4)


def test_an_unknown_model_has_no_estimate_and_no_knee(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(LEARNT):
        assert (pace.estimate("m", 100), pace.knee("m", 5000)) == (None, 5000)
        pace.learn(batch(100), 1e-3)
    assert pace.estimate("m", 100) == pytest.approx(1e-3)


def test_batches_at_the_knee_do_nearly_the_work_of_the_largest(clock: Clock) -> None:
    knee = taught(clock).knee("m", 50_000)
    rate, most = (cost / (1e-3 + cost * 1e-6) for cost in (knee, 50_000))
    assert knee < 30_000
    assert rate / most == pytest.approx(KNEE, abs=0.002)


@pytest.mark.parametrize(
    "seconds", [lambda cost: cost * 1e-6, lambda cost: 1e-3], ids=["no fixed part", "nothing else"]
)
def test_the_knee_lies_between_a_quarter_and_the_whole(clock: Clock, seconds: Callable[[int], float]) -> None:
    pace = Pace(clock)
    for cost in range(100, 5000, 50):
        pace.learn(batch(cost), seconds(cost))
    assert 1250 <= pace.knee("m", 5000) <= 5000


def busy(pace: Pace, clock: Clock, idle_s: float, batches: int = 400, *, full: bool = True) -> float:
    """The lead after batches of 2 ms with work always waiting, each `idle_s` after the one before."""
    for _ in range(batches):
        waiting = batch(1000, clock.now - 1e-3)
        clock.advance(2e-3 + idle_s)
        pace.learn(waiting, 2e-3, full=full)
    due = pace.due([batch(1000, clock.now), batch(1000, clock.now)])
    assert due is not None
    return clock.now + 4e-3 - due


def test_batches_leave_the_earlier_the_longer_the_engine_stood_idle(clock: Clock) -> None:
    pace = taught(clock)
    assert busy(pace, clock, 0.0) == pytest.approx(LEAD_S, abs=5e-5)
    assert busy(pace, clock, 1e-4) == pytest.approx(2e-3, abs=5e-5)
    assert busy(pace, clock, 0.0, 2000) == pytest.approx(LEAD_S, abs=5e-5)


def test_batches_that_others_could_have_joined_leave_no_earlier(clock: Clock) -> None:
    assert busy(taught(clock), clock, 1e-4, full=False) == pytest.approx(LEAD_S, abs=5e-5)


def test_an_engine_that_had_nothing_to_do_was_not_kept_waiting(clock: Clock) -> None:
    pace = taught(clock)
    for _ in range(400):
        clock.advance(1.0)
        sent = clock.now
        clock.advance(2e-3)
        pace.learn(batch(1000, sent), 2e-3, full=True)
    due = pace.due([batch(1000, clock.now)])
    assert due == pytest.approx(clock.now + 2e-3 - LEAD_S, abs=5e-5)


def test_a_batch_that_nothing_is_learnt_from_was_no_idleness(clock: Clock) -> None:
    pace = taught(clock)
    for number in range(400):
        waiting = batch(1000, clock.now - 1e-3)
        clock.advance(2e-3)
        if number % 10:
            pace.learn(waiting, 2e-3, full=True)
        else:
            pace.ended()
    assert busy(pace, clock, 0.0, 1) == pytest.approx(LEAD_S, abs=5e-5)


def test_a_brief_batch_takes_no_lead_from_long_ones(clock: Clock) -> None:
    pace = taught(clock)
    for _ in range(300):
        busy(pace, clock, 1e-3, 3)
        waiting = batch(10, clock.now - 1e-3)
        clock.advance(1e-4)
        pace.learn(waiting, 1e-4, full=True)
    assert busy(pace, clock, 1e-3, 1) == pytest.approx(2e-3, abs=5e-5)


def test_brief_batches_are_known_and_together_short(clock: Clock) -> None:
    pace = taught(clock)
    assert pace.are_brief([batch(1400), batch(1400)])
    assert not pace.are_brief([batch(1600), batch(1600)])
    assert not pace.are_brief([batch(10, model="other")])
