"""What the service manager hears, in order, over a clock that the test moves."""

from __future__ import annotations

import math

import pytest

from gpu_server.daemon.heartbeat import EVERY_S, LATE_S, Heartbeat
from gpu_server.daemon.systemd import Notifier
from gpu_server.wire.documents import ModelInfo, QueueStatus, State, Status


class Ear(Notifier):
    """A notifier whose manager hears everything, or nothing while `deaf`."""

    def __init__(self, watchdog_s: float = 0.0) -> None:
        super().__init__("", watchdog_s)
        self.enabled = True
        self.deaf = False
        self.heard: list[tuple[str, ...]] = []

    def send(self, *assignments: str) -> bool:
        if not self.deaf:
            self.heard.append(assignments)
        return not self.deaf


class World:
    """A heartbeat with its clock and its manager."""

    def __init__(self, watchdog_s: float = 0.0) -> None:
        self.now = 100.0
        self.ear = Ear(watchdog_s)
        self.heartbeat = Heartbeat(self.ear, lambda: self.now, drain_timeout_s=30)

    def beat(
        self,
        state: State = "ready",
        timer: float | None = None,
        stopping: bool = False,
        reloading: bool = False,
        **more: object,
    ) -> tuple[str, ...]:
        """What one beat says; `more` are fields of the status document."""
        before = len(self.ear.heard)
        queue = QueueStatus(requests=3)
        models = (ModelInfo(name="m"),) if state != "loading" else ()
        status = Status(version="1", pid=1, endpoint="", state=state, queue=queue, models=models, **more)  # type: ignore[arg-type]
        self.heartbeat.beat(status, timer, stopping=stopping, reloading=reloading)
        return self.ear.heard[-1] if len(self.ear.heard) > before else ()


def test_a_start_shows_its_progress_and_asks_for_time() -> None:
    said = World().beat("loading", phase="warming up m", progress=0.66)
    assert said == ("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=loading: warming up m (66%)")


def test_ready_is_said_once() -> None:
    world = World()
    assert world.beat()[0] == "READY=1"
    world.now += 1
    assert world.beat() == ("WATCHDOG=1",)
    assert not [line for line in world.beat("degraded") if line.startswith(("READY", "EXTEND"))]
    assert "READY=1" not in world.beat()


def test_ready_is_said_again_until_the_manager_has_heard_it() -> None:
    world = World()
    world.ear.deaf = True
    world.beat()
    world.ear.deaf = False
    assert world.beat() == ("READY=1", "WATCHDOG=1", "STATUS=ready: 1 model, queue 3, 0 req/s")


def test_the_rate_is_of_the_time_since_the_last_beat() -> None:
    world = World()
    world.beat()
    world.now += 2
    assert "STATUS=ready: 1 model, queue 3, 50 req/s" in world.beat(counters={"success": 100})


def test_a_stop_announces_how_long_it_may_take() -> None:
    world = World()
    world.beat()
    stopping = (
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=45000000",
        "WATCHDOG=1",
        "STATUS=draining: 3 open requests",
    )
    assert world.beat("draining", stopping=True) == stopping
    assert world.beat("draining", stopping=True) == ("WATCHDOG=1",)


def test_a_drain_without_a_stop_is_only_shown() -> None:
    world = World()
    world.beat()
    assert world.beat("draining") == ("WATCHDOG=1", "STATUS=draining: 3 open requests")


def test_a_reload_has_a_beginning_and_an_end_and_is_given_time() -> None:
    world = World()
    world.beat()
    first, _, *rest = world.beat(reloading=True)
    assert first == "RELOADING=1"
    assert rest == [
        "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=reloading: 1 model, queue 3, 0 req/s",
    ]  # fmt: skip
    assert world.beat(reloading=True) == ("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000")
    assert world.beat()[:2] == ("READY=1", "WATCHDOG=1")


@pytest.mark.parametrize(("late_s", "alive"), [(-10.0, True), (LATE_S - 1, True), (LATE_S + 1, False)])
def test_no_sign_of_life_while_the_supervisor_misses_its_timers(late_s: float, alive: bool) -> None:
    world = World()
    assert ("WATCHDOG=1" in world.beat(timer=world.now - late_s)) is alive


@pytest.mark.parametrize(("watchdog_s", "every_s"), [(0.0, EVERY_S), (30.0, EVERY_S), (1.5, 0.5)])
def test_it_speaks_often_enough_for_the_watchdog(watchdog_s: float, every_s: float) -> None:
    world = World(watchdog_s)
    assert world.heartbeat.due == world.now
    world.beat()
    assert world.heartbeat.due == world.now + every_s


def test_without_a_manager_it_is_never_due() -> None:
    heartbeat = Heartbeat(Notifier(), lambda: 0.0, 30)
    assert heartbeat.due == math.inf
