"""The engine's life as the supervisor sees it, with links and a clock that do what the test says."""

from __future__ import annotations

from typing import Any, cast

import pytest
from supervisor_world import World

from gpu_server.daemon import crashes
from gpu_server.daemon.request import Batch


@pytest.fixture
def world() -> World:
    return World()


def test_a_loaded_engine_is_announced_once(world: World) -> None:
    world.supervisor.poll()
    assert (world.supervisor.state, world.ready) == ("loading", [])
    world.become_ready()
    world.supervisor.poll()
    assert (world.supervisor.state, world.ready) == ("ready", [world.link])
    assert world.supervisor.next_timer() is None


def test_a_dead_engine_is_respawned_at_once_and_reaped(world: World) -> None:
    world.become_ready()
    world.die()
    assert world.lost == world.links[:1]
    assert world.links[0].calls[-2:] == ["kill", "reap"]
    assert world.supervisor.state == "backoff"
    assert world.supervisor.next_timer() == world.clock.now
    world.supervisor.poll()
    assert (len(world.links), world.supervisor.restarts, world.supervisor.state) == (2, 1, "loading")
    world.become_ready()
    assert world.ready == world.links


def test_each_crash_waits_longer(world: World) -> None:
    waits = []
    for _ in range(crashes.CRASHES - 1):
        world.die()
        timer = world.supervisor.next_timer()
        assert timer is not None
        waits.append(timer - world.clock.now)
        if waits[-1]:
            world.clock.advance(waits[-1] - 0.01)
            world.supervisor.poll()
            assert world.supervisor.state == "backoff"
            world.clock.advance(0.01)
        world.supervisor.poll()
    assert waits == [0.0, 1.0, 2.0, 4.0]


def test_too_many_crashes_in_a_while_are_final(world: World) -> None:
    for _ in range(crashes.CRASHES):
        world.die(-11)
        world.clock.advance(10)
        world.supervisor.poll()
    assert (world.supervisor.state, world.supervisor.exit_code) == ("failed", 70)
    assert "failed 5 times in 300 s; last: killed by signal 11" in world.supervisor.failure
    assert world.supervisor.next_timer() is None
    world.clock.advance(1000)
    world.supervisor.poll()
    assert len(world.links) == crashes.CRASHES


def test_old_crashes_are_forgotten(world: World) -> None:
    for _ in range(3 * crashes.CRASHES):
        world.become_ready()
        world.die(1)
        world.clock.advance(crashes.CRASH_WINDOW_S + 1)
        world.supervisor.poll()
        assert world.supervisor.state == "loading"


def test_a_system_without_a_process_to_give_is_asked_again(world: World) -> None:
    world.become_ready()
    world.no_process = True
    world.die()
    assert (world.supervisor.state, len(world.links)) == ("backoff", 1)
    world.poll()
    assert (world.supervisor.state, world.supervisor.link) == ("backoff", None)
    retry_at = world.supervisor.next_timer()
    assert retry_at is not None
    assert retry_at > world.clock.now
    world.no_process = False
    world.clock.now = retry_at
    world.poll()
    assert (world.supervisor.state, world.supervisor.link) == ("loading", world.links[1])


def test_one_that_never_has_a_process_is_given_up(world: World) -> None:
    world.become_ready()
    world.no_process = True
    world.die()
    while world.supervisor.state == "backoff":
        world.clock.advance(1.0)
        world.poll()
    assert world.supervisor.state == "failed"
    assert "no engine process could be started: Resource temporarily unavailable" in world.supervisor.failure


def test_a_permanent_failure_is_not_tried_again(world: World) -> None:
    world.fail("no such model", exit_code=66, permanent=True)
    world.poll()
    assert (world.supervisor.state, world.supervisor.failure) == ("failed", "no such model")
    assert (world.supervisor.exit_code, len(world.links)) == (66, 1)


def test_a_load_without_memory_is_tried_again_and_again(world: World) -> None:
    for _ in range(crashes.CRASHES - 1):
        world.fail("CUDA out of memory", exit_code=70, fault="memory")
        world.clock.advance(30)
        world.poll()
        assert world.supervisor.state == "loading"
    assert world.supervisor.restarts == crashes.CRASHES - 1


def test_a_lost_device_is_worth_one_fresh_process(world: World) -> None:
    world.become_ready()
    world.fail("CUDA error: device-side assert", fault="device")
    world.poll()
    assert (world.supervisor.state, len(world.links)) == ("loading", 2)
    world.become_ready()
    world.fail("CUDA error: device-side assert", fault="device")
    world.clock.advance(1)
    world.poll()
    assert (world.supervisor.state, len(world.links)) == ("loading", 3)
    world.fail("CUDA error: no CUDA-capable device is detected", fault="device")
    assert (world.supervisor.state, world.supervisor.exit_code) == ("failed", 86)
    assert world.supervisor.failure == ("the device is lost: CUDA error: no CUDA-capable device is detected")
    status = world.supervisor.status()
    assert status is not None
    assert (status.state, status.error) == ("failed", world.supervisor.failure)


def test_a_device_that_has_gone_is_no_wrong_setting(world: World) -> None:
    world.become_ready()
    world.fail("CUDA error: unspecified launch failure", fault="device")
    world.poll()
    world.fail("device 'cuda:0' is not there", exit_code=78, permanent=True)
    assert (world.supervisor.state, world.supervisor.exit_code) == ("failed", 86)
    assert "the device is lost" in world.supervisor.failure


def test_a_full_device_is_not_a_lost_one(world: World) -> None:
    world.become_ready()
    world.fail("CUDA error: unspecified launch failure", fault="device")
    world.poll()
    world.fail("CUDA out of memory", fault="memory")
    assert world.supervisor.state == "backoff"


def test_the_next_engine_uses_the_device_of_the_first(world: World) -> None:
    world.become_ready("cuda:1 (NVIDIA H200)")
    world.die()
    world.poll()
    assert world.devices == ["", "cuda:1"]


def test_a_load_without_progress_is_ended_and_tried_again(world: World) -> None:
    assert world.supervisor.next_timer() == world.clock.now + 60
    world.clock.advance(59)
    world.link.heard = world.clock.now
    world.clock.advance(59)
    world.supervisor.poll()
    assert "kill" not in world.link.calls
    world.clock.advance(2)
    world.supervisor.poll()
    assert "kill" in world.link.calls
    world.supervisor.poll()
    world.supervisor.poll()
    assert len(world.links) == 2


def test_a_batch_that_never_ends_costs_the_engine_its_life(world: World) -> None:
    world.become_ready()
    batch = Batch(1, "m", {}, world.clock.now)
    world.link.batches[b"1"] = batch
    assert world.supervisor.next_timer() == world.clock.now + 30
    world.clock.advance(30)
    world.supervisor.poll()
    assert "kill" not in world.link.calls
    world.clock.advance(0.1)
    world.supervisor.poll()
    assert "kill" in world.link.calls
    world.supervisor.poll()
    assert world.lost == world.links[:1]


def test_nobody_waits_for_an_engine_that_does_not_die(world: World) -> None:
    world.become_ready()
    stuck = world.link
    stuck.dies_at_once = False
    world.die()
    assert "close" not in stuck.calls
    timer = world.supervisor.next_timer()
    assert timer == world.clock.now
    world.supervisor.poll()
    assert (world.supervisor.state, len(world.links)) == ("loading", 2)
    timer = world.supervisor.next_timer()
    assert timer is not None
    assert timer <= world.clock.now + 0.1
    stuck.dies_at_once = True
    world.supervisor.poll()
    assert world.supervisor.next_timer() == world.link.heard + 60


def test_a_ready_engine_may_be_silent_forever(world: World) -> None:
    world.become_ready()
    world.clock.advance(1e6)
    world.supervisor.poll()
    assert (world.supervisor.state, "kill" in world.link.calls) == ("ready", False)


def test_the_last_engine_is_shown_while_there_is_none(world: World) -> None:
    world.become_ready()
    world.link.batches[b"1"] = cast(Any, None)
    world.die()
    status = world.supervisor.status()
    assert status is not None
    assert (status.pid, status.state, status.in_flight) == (100, "backoff", 0)


def test_stopping_ends_and_reaps_the_engine(world: World) -> None:
    world.become_ready()
    world.supervisor.stop()
    assert world.link.calls[-2:] == ["stop", "close"]
    assert (world.supervisor.link, world.supervisor.state) == (None, "stopping")
    world.supervisor.poll()
    assert len(world.links) == 1


def test_an_engine_whose_forward_hangs_is_killed_once(world: World) -> None:
    world.become_ready()
    world.give_batch(world.link)
    assert world.supervisor.next_timer() == world.clock.now + 30
    world.clock.now += 31
    world.link.ends_when_killed = False
    world.poll(3)
    assert world.link.calls.count("kill") == 1
    assert world.supervisor.next_timer() is None
    world.die()
    assert world.lost == [world.links[0]]
    world.poll()
    assert len(world.links) == 2
