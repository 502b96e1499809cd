"""The loop on a master that is a list of counters: what it measures, when it waits, what it logs."""

from __future__ import annotations

import logging

import pytest

from gpu_server.autoscale.controller import Controller, Engine, Policy
from gpu_server.autoscale.engine_load import engine_of
from gpu_server.autoscale.loop import Autoscaler
from gpu_server.wire.monitoring import Point


class Machine:
    """Master, clock and daemon in one: `load` workers' worth of CPU is shared by the workers there are."""

    def __init__(self, load: float = 0.0, held: float = 0.0) -> None:
        self.now = 0.0
        self.load = load
        self.held = held
        self.used: dict[int, float] = {1: 0.0}
        self.signals: list[bool] = []
        self.ends_at = float("inf")
        self.obeys = True

    def alive(self) -> bool:
        return self.now < self.ends_at

    def active_s(self) -> dict[int, float]:
        return dict(self.used)

    def signal(self, more: bool) -> None:
        self.signals.append(more)
        if more and self.obeys:
            self.used[max(self.used) + 1] = 0.0
        elif self.obeys:
            del self.used[min(self.used)]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for pid in self.used:
            self.used[pid] += seconds * min(1.0, self.load / len(self.used))

    def read(self) -> Engine | None:
        return Engine(busy=0.5, forward_s=0.01, queue_wait_s=0.002)

    def scaler(self, threads: int = 0, most: int = 4) -> Autoscaler:
        return Autoscaler(
            self,  # type: ignore[arg-type]
            Controller(Policy(1, most)),
            self,
            threads=threads,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


def test_it_follows_the_load_ends_with_the_master_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(load=1.8)
    machine.ends_at = 20.0
    scaler = machine.scaler()
    with caplog.at_level(logging.INFO, "gpu_server.autoscale"):
        scaler.run()
        assert len(machine.used) == 3
        machine.load, machine.ends_at = 0.1, 80.0
        scaler.run()
    assert len(machine.used) == 1
    reasons = [vars(record)["reason"] for record in caplog.records]
    assert reasons == ["workers are busy", "workers are busy", "fewer would do"]
    assert vars(caplog.records[0])["target"] == 2
    assert vars(caplog.records[0])["engine_busy"] == 0.5
    assert vars(caplog.records[-1])["busy"] == pytest.approx(0.1 / 3), "what was judged"


def test_a_new_worker_hides_one_look_and_no_more() -> None:
    machine = Machine(load=0.3)
    scaler = machine.scaler()
    machine.sleep(1)
    machine.used = {1: machine.used[1], 2: 5.0}
    assert scaler._measure() is None
    machine.sleep(1)
    sample = scaler._measure()
    assert sample is not None
    assert sample.workers == 2
    assert sample.busy == pytest.approx(0.15)


def test_the_busiest_and_the_idlest_worker_are_seen() -> None:
    machine = Machine()
    machine.used = {1: 0.0, 2: 0.0, 3: 0.0}
    scaler = machine.scaler()
    machine.sleep(1)
    machine.used = {1: 0.9, 2: 0.5, 3: 0.1}
    sample = scaler._measure()
    assert sample is not None
    assert (sample.busy, sample.busiest, sample.idlest) == pytest.approx((0.5, 0.9, 0.1))


@pytest.mark.parametrize(("threads", "busy"), [(0, 0.1), (8, 0.75), (4, 1.0)])
def test_requests_that_hold_the_threads_are_load_where_these_are_few(threads: int, busy: float) -> None:
    machine = Machine(load=0.1, held=6.0)
    scaler = machine.scaler(threads)
    machine.sleep(1)
    sample = scaler._measure()
    assert sample is not None
    assert sample.busy == pytest.approx(busy)


def test_a_master_that_does_not_obey_is_not_flooded() -> None:
    machine = Machine(load=5.0)
    machine.obeys = False
    scaler = machine.scaler()
    while machine.now < 60.0:
        machine.sleep(1)
        scaler.turn()
    assert len(machine.signals) <= 2


def test_the_engine_is_the_mean_of_the_points_and_their_longest_wait() -> None:
    points = [
        Point(number=1, at=0.0, busy=0.8, batches=80, queue_p99_ms=4.0),
        Point(number=2, at=1.0, busy=1.0, batches=100, queue_p99_ms=30.0),
    ]
    engine = engine_of(True, points)
    assert engine == Engine(True, pytest.approx(0.9), pytest.approx(0.01), 0.03)
    assert engine_of(False, []) == Engine(ready=False)
