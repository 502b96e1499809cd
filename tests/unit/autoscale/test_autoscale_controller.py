"""The controller against simulated load: right numbers, no oscillation, bounds kept, and never more for a full engine."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.autoscale.controller import Controller, Decision, Engine, Policy, Sample
from gpu_server.errors import ConfigError

IDLE = Engine(busy=0.2, forward_s=0.005, queue_wait_s=0.002)
FULL = Engine(busy=0.99, forward_s=0.005, queue_wait_s=0.05)
POLICY = Policy(1, 16)


class World:
    """Workers under a load, given in workers' worth of CPU time, looked at once a second."""

    def __init__(self, policy: Policy = POLICY, workers: int = 1, noise: float = 0.0, seed: int = 0) -> None:
        self.policy = policy
        self.controller = Controller(policy)
        self.workers = workers
        self.now = 100.0
        self.moves: list[tuple[float, Decision]] = []
        self._noise = noise
        self._random = random.Random(seed)

    def run(self, seconds: int, load: float, engine: Engine | None = IDLE) -> None:
        for _ in range(seconds):
            self.now += 1.0
            seen = load * (1 + self._random.uniform(-self._noise, self._noise))
            sample = Sample(self.now, self.workers, min(1.0, seen / self.workers), engine)
            decision = self.controller.observe(sample)
            if decision is not None:
                self.moves.append((self.now, decision))
                self.workers = decision.target

    @property
    def reasons(self) -> list[str]:
        return [decision.reason for _, decision in self.moves]

    @property
    def changes(self) -> list[int]:
        return [d.target - d.workers for _, d in self.moves if d.target != d.workers]


def test_a_ramp_is_followed_up_and_down_again() -> None:
    world = World()
    for load in (0.2, 1.0, 2.0, 4.0, 7.0):
        world.run(40, load)
        assert load / 0.8 <= world.workers <= load / 0.6 + 1
    world.run(60, 0.1)
    assert world.workers == 1
    assert world.reasons[-1] == "fewer would do"


def test_a_burst_is_answered_within_seconds_and_kept_for_a_while() -> None:
    world = World()
    world.run(40, 0.1)
    begun = world.now
    world.run(20, 5.0)
    assert world.workers >= 6
    assert world.moves[0][0] - begun <= 4
    world.run(25, 0.1)
    assert world.workers >= 6
    world.run(10, 0.1)
    assert world.workers == 1


def test_a_short_peak_moves_nothing() -> None:
    world = World()
    for _ in range(20):
        world.run(2, 1.0)
        world.run(4, 0.3)
    assert world.moves == []


@settings(max_examples=60)
@given(st.floats(0, 20), st.integers(1, 20), st.integers(1, 6), st.integers(0, 10), st.integers(0, 1000))
def test_a_steady_load_never_moves_up_and_down_again(
    load: float, workers: int, least: int, more: int, seed: int
) -> None:
    policy = Policy(least, least + more)
    world = World(policy, workers, noise=0.04, seed=seed)
    world.run(450, load)
    moves = world.changes[workers < least or workers > least + more :]
    assert len({change > 0 for change in moves}) <= 1
    assert len(moves) <= 8
    assert policy.least <= world.workers <= policy.most
    assert world.workers == policy.most or load / world.workers < 0.85, "too few"
    assert world.workers == policy.least or load / (world.workers - 1) > 0.55, "too many"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 30), st.booleans()), max_size=12))
def test_no_load_leads_out_of_the_bounds(parts: list[tuple[int, float, bool]]) -> None:
    world = World(Policy(2, 9), 2)
    for seconds, load, full in parts:
        world.run(seconds, load, FULL if full else IDLE)
        assert all(2 <= decision.target <= 9 for _, decision in world.moves)
    assert not any(d.target > d.workers for _, d in world.moves if d.reason != "workers are busy")


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (FULL, "the engine is the bottleneck"),
        (replace(IDLE, ready=False), "the daemon is not ready"),
        (None, "no daemon answers"),
    ],
)
def test_no_worker_is_added_where_it_would_not_help(engine: Engine | None, reason: str) -> None:
    world = World()
    world.run(60, 3.0, engine)
    assert world.workers == 1
    assert world.reasons == [reason], "told once"
    world.run(10, 3.0)
    assert world.workers > 1


def test_an_engine_busy_with_small_batches_is_no_bottleneck() -> None:
    world = World()
    world.run(20, 3.0, Engine(busy=1.0, forward_s=0.005, queue_wait_s=0.006))
    assert world.workers >= 4


def test_fewer_workers_for_a_full_engine_are_allowed() -> None:
    world = World(workers=8)
    world.run(60, 0.5, FULL)
    assert world.workers == 1


def test_the_size_of_a_step_is_what_is_seen_last_where_that_is_more() -> None:
    world = World(workers=4)
    world.run(1, 2.0)
    world.run(1, 2.8)
    world.run(2, 4.0)
    (decision,) = (decision for _, decision in world.moves)
    assert (decision.target, decision.busy) == (7, 1.0)


@pytest.mark.parametrize(
    ("busiest", "idlest", "reasons"),
    [
        (1.0, 0.0, ["the load stays with some of the workers"]),
        (1.0, 0.6, []),
        (0.7, 0.0, []),
    ],
)
def test_new_workers_that_get_nothing_to_do_are_told_once_and_not_joined_by_more(
    busiest: float, idlest: float, reasons: list[str]
) -> None:
    controller = Controller(POLICY)
    told = [
        decision
        for at in range(200)
        if (decision := controller.observe(Sample(float(at), 4, 0.75, IDLE, busiest, idlest)))
    ]
    assert [decision.reason for decision in told] == reasons
    assert all(decision.target == 4 for decision in told)


def test_workers_that_were_added_have_a_while_to_get_their_share() -> None:
    controller = Controller(POLICY)
    uneven = [Sample(float(at), 3 + at // 29, 0.7, IDLE, 1.0, 0.1) for at in range(200)]
    assert [decision for sample in uneven if (decision := controller.observe(sample))] == []


def test_the_most_is_told_once_while_the_load_hovers_about_it() -> None:
    world = World(Policy(1, 2))
    for _ in range(10):
        world.run(6, 1.9)
        world.run(6, 1.4)
    assert world.reasons == ["workers are busy", "at the most"]


def test_a_number_outside_the_bounds_is_brought_in_but_not_in_the_midst_of_a_reload() -> None:
    world = World(Policy(2, 4), workers=1)
    world.run(5, 0.1)
    assert world.workers == 2
    world.workers = 8
    world.run(20, 0.1)
    assert world.workers == 8
    world.run(15, 0.1)
    assert world.workers <= 4


@pytest.mark.parametrize(
    "wrong", [{"least": 0}, {"least": 3, "most": 2}, {"aim": 0.9}, {"remove_below": 0.7}, {"add_above": 1.5}]
)
def test_thresholds_that_would_oscillate_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="autoscale"):
        replace(Policy(), **wrong)  # type: ignore[arg-type]
