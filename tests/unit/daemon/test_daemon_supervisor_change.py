"""A change of models as the supervisor sees it: every way it can go, with links and a clock that do what the test says."""

from __future__ import annotations

import pytest
from supervisor_world import World, specs

from gpu_server.daemon import reaper
from gpu_server.daemon.crashes import CRASHES
from gpu_server.daemon.supervisor import END_LIMIT_S
from gpu_server.errors import Conflict, LoadFailed, ModelLoading, ShuttingDown


@pytest.fixture
def world() -> World:
    made = World()
    made.become_ready()
    return made


def reason(world: World) -> str:
    """Why the one change of a test failed."""
    (error,) = world.outcomes
    assert isinstance(error, LoadFailed)
    return error.message


def assert_old_serves(world: World) -> None:
    assert world.supervisor.link is world.links[0]
    assert (world.supervisor.state, world.supervisor.models) == ("ready", specs("m"))
    assert (world.supervisor.links, world.supervisor.successor) == ((world.links[0],), None)
    assert "kill" not in world.links[0].calls


def test_the_new_engine_loads_beside_the_old_one_and_takes_over(world: World) -> None:
    old = world.link
    world.change("m", "n")
    assert (len(world.links), list(world.link.models)) == (2, ["m", "n"])
    assert world.gentle == [False, True]
    assert (world.supervisor.state, world.supervisor.link) == ("ready", old)
    assert [e.pid for e in world.supervisor.statuses()] == [100, 101]
    world.poll()
    assert world.outcomes == []
    world.become_ready()
    assert world.ready == world.links
    assert world.supervisor.models == specs("m", "n")
    world.poll(2)
    assert old.calls[-2:] == ["stop", "reap"]
    assert (world.outcomes, world.supervisor.links) == ([None], (world.link,))
    assert (world.supervisor.state, world.supervisor.restarts) == ("ready", 0)
    assert world.supervisor.next_timer() is None


def test_the_old_engine_finishes_its_batches_before_it_ends(world: World) -> None:
    old = world.link
    world.give_batch(old)
    world.change()
    world.become_ready()
    world.poll(3)
    assert (world.supervisor.retired, world.outcomes) == (old, [])
    assert [e.state for e in world.supervisor.statuses()] == ["loading", "stopping"]
    assert not world.supervisor.pressing()
    assert "stop" not in old.calls
    old.batches.clear()
    assert world.supervisor.pressing()
    world.poll(2)
    assert (world.supervisor.retired, world.outcomes) == (None, [None])
    assert world.lost == []


def test_a_replaced_engine_that_does_not_end_is_killed_and_the_change_ends_without_it(world: World) -> None:
    old = world.link
    old.dies_at_once = False
    world.change()
    world.become_ready()
    world.poll()
    assert "kill" not in old.calls
    world.clock.advance(reaper.END_GRACE_S)
    world.poll()
    assert ("kill" in old.calls, world.outcomes) == (True, [])
    world.clock.advance(END_LIMIT_S)
    world.poll()
    assert world.outcomes == [None]


@pytest.mark.parametrize("permanent", [True, False])
def test_a_bad_version_leaves_the_old_one_serving(world: World, permanent: bool) -> None:
    world.change("m", "n")
    world.fail("weights.bin is truncated", permanent=permanent, exit_code=70)
    assert reason(world) == "weights.bin is truncated"
    assert_old_serves(world)
    world.change()
    assert len(world.links) == 3


def test_without_a_process_for_the_new_engine_the_old_one_serves_on(world: World) -> None:
    world.no_process = True
    world.change()
    assert reason(world) == "no engine process could be started: Resource temporarily unavailable"
    assert_old_serves(world)
    world.no_process = False
    world.outcomes.clear()
    world.change()
    world.become_ready()
    world.poll(2)
    assert world.outcomes == [None]


def test_without_a_process_after_the_old_engine_ended_the_old_models_come_back(world: World) -> None:
    world.no_process = True
    world.change("n", drain_first=True)
    world.poll(3)
    assert reason(world).startswith("no engine process")
    assert world.supervisor.state == "backoff"
    world.no_process = False
    world.poll()
    assert list(world.link.models) == ["m"]


def test_a_new_engine_that_dies_in_warm_up_leaves_the_old_one_serving(world: World) -> None:
    world.change()
    world.die(-11)
    assert reason(world) == "killed by signal 11"
    assert_old_serves(world)


def test_a_new_engine_whose_load_stalls_is_ended(world: World) -> None:
    world.change()
    assert world.supervisor.next_timer() == world.clock.now + 60
    world.clock.advance(61)
    world.poll(2)
    assert reason(world) == "killed by signal 9"
    assert_old_serves(world)


def test_failed_changes_are_no_crashes_of_the_engine(world: World) -> None:
    for _ in range(2 * CRASHES):
        world.change()
        world.die(1)
    assert_old_serves(world)


def test_a_second_change_is_refused(world: World) -> None:
    world.change()
    with pytest.raises(Conflict, match="another change"):
        world.change("other")
    assert (len(world.links), world.outcomes) == (2, [])
    world.become_ready()
    world.give_batch(world.links[0])
    with pytest.raises(Conflict):
        world.change("other")


def test_no_change_before_the_first_engine_is_ready() -> None:
    with pytest.raises(ModelLoading):
        World().change()


def test_no_room_for_both_ends_the_old_engine_first(world: World) -> None:
    old = world.link
    world.give_batch(old)
    world.change()
    world.fail("CUDA out of memory", fault="memory")
    assert (world.outcomes, world.held, world.supervisor.state) == ([], 1, "holding")
    world.poll(2)
    assert (world.supervisor.link, len(world.links)) == (old, 2)
    old.batches.clear()
    world.poll(2)
    assert old.calls[-2:] == ["stop", "reap"]
    assert (len(world.links), world.supervisor.state) == (3, "loading")
    assert world.gentle == [False, True, False]
    world.become_ready()
    world.poll()
    assert (world.outcomes, world.supervisor.state) == ([None], "ready")
    assert world.ready == [old, world.link]


def test_drain_first_waits_until_the_old_engines_memory_is_free(world: World) -> None:
    old = world.link
    old.dies_at_once = False
    world.change(drain_first=True)
    world.poll(3)
    assert (world.held, len(world.links), world.supervisor.link) == (1, 1, None)
    assert world.supervisor.next_timer() == world.clock.now + reaper.REAP_S
    old.dies_at_once = True
    world.poll()
    assert [e.pid for e in world.supervisor.statuses()] == [101]
    world.become_ready()
    world.poll()
    assert world.outcomes == [None]


def test_drain_first_does_not_wait_for_an_engine_that_still_respawns(world: World) -> None:
    world.die()
    world.poll()
    world.change("n", drain_first=True)
    assert world.links[1].calls[-2:] == ["stop", "reap"]
    world.poll()
    world.become_ready()
    world.poll()
    assert (list(world.link.models), world.outcomes, len(world.ready)) == (["n"], [None], 2)


@pytest.mark.parametrize("fault", ["", "memory"])
def test_drain_first_brings_the_old_models_back_if_the_new_ones_fail(world: World, fault: str) -> None:
    world.change("bad", drain_first=True)
    world.poll(2)
    assert list(world.link.models) == ["bad"]
    world.fail("no", fault=fault, permanent=not fault)
    assert reason(world) == "no"
    assert world.supervisor.state == "backoff"
    world.poll()
    assert (list(world.link.models), world.supervisor.models) == (["m"], specs("m"))
    world.become_ready()
    assert (world.supervisor.state, len(world.outcomes)) == ("ready", 1)


def test_drain_first_ends_an_engine_whose_forward_hangs(world: World) -> None:
    world.give_batch(world.link)
    world.change(drain_first=True)
    world.clock.advance(31)
    world.poll(4)
    assert world.lost == world.links[:1]
    assert (len(world.links), world.supervisor.state) == (2, "loading")
    world.become_ready()
    world.poll()
    assert world.outcomes == [None]


def test_when_the_old_engine_dies_everyone_waits_for_the_new_one(world: World) -> None:
    old = world.link
    world.change("m", "n")
    world.die(link=old)
    world.clock.advance(10)
    world.poll(3)
    assert (world.lost, len(world.links), world.supervisor.state) == ([old], 2, "loading")
    world.become_ready()
    world.poll()
    assert (world.outcomes, world.supervisor.state, world.supervisor.restarts) == ([None], "ready", 0)


def test_when_both_engines_die_the_old_models_come_back(world: World) -> None:
    world.change("m", "n")
    world.die(link=world.links[0])
    world.die(1)
    assert reason(world) == "exited with code 1"
    world.poll()
    assert (list(world.link.models), world.supervisor.restarts) == (["m"], 1)


def test_a_change_can_end_a_crash_loop(world: World) -> None:
    for _ in range(CRASHES - 1):
        world.die()
        world.clock.advance(20)
        world.poll()
        world.become_ready()
    world.change("good")
    world.die(link=world.links[-2])
    assert world.supervisor.state == "loading"
    world.become_ready()
    world.poll()
    assert (world.supervisor.state, world.outcomes) == ("ready", [None])


def test_a_crash_loop_is_final_when_the_change_fails_too(world: World) -> None:
    for _ in range(CRASHES - 1):
        world.die()
        world.clock.advance(20)
        world.poll()
        world.become_ready()
    world.change("bad")
    world.die(link=world.links[-2])
    world.fail("no", permanent=True)
    assert (world.supervisor.state, len(world.outcomes)) == ("failed", 1)
    assert "failed 5 times" in world.supervisor.failure


def test_a_change_while_a_respawn_waits_goes_first(world: World) -> None:
    world.die()
    world.poll()
    world.die()
    assert world.supervisor.state == "backoff"
    world.change("n")
    world.clock.advance(60)
    world.poll()
    assert (len(world.links), list(world.link.models)) == (3, ["n"])
    world.become_ready()
    world.poll()
    assert (world.supervisor.state, world.outcomes) == ("ready", [None])


def test_an_engine_that_still_respawns_is_given_up_for_the_new_one(world: World) -> None:
    world.die()
    world.poll()
    respawning = world.link
    world.change("n")
    world.become_ready()
    world.poll()
    assert respawning.calls[-2:] == ["kill", "reap"]
    assert (world.ready[-1], world.outcomes) == (world.link, [None])


def test_a_replaced_engine_that_dies_gives_its_batches_back(world: World) -> None:
    old = world.link
    world.give_batch(old)
    world.change()
    world.become_ready()
    world.die(link=old)
    world.poll()
    assert (world.lost, world.outcomes) == ([old], [None])
    assert (world.supervisor.link, world.supervisor.state) == (world.link, "ready")


def test_a_replaced_engine_that_hangs_is_killed(world: World) -> None:
    old = world.link
    world.give_batch(old)
    world.change()
    world.become_ready()
    assert world.supervisor.next_timer() is not None
    world.clock.advance(31)
    world.poll(3)
    assert (world.lost, world.outcomes) == ([old], [None])


def test_a_new_engine_that_dies_after_the_swap_is_respawned_with_the_new_models(world: World) -> None:
    old = world.link
    world.give_batch(old)
    world.change("m", "n")
    world.become_ready()
    world.die()
    world.poll()
    assert (world.supervisor.state, list(world.link.models)) == ("loading", ["m", "n"])
    assert world.supervisor.links == (world.link, old)
    old.batches.clear()
    world.poll(2)
    assert world.outcomes == [None]


def test_a_stop_gives_up_a_change_that_the_old_engine_can_do_without(world: World) -> None:
    world.change()
    world.supervisor.cancel_change(ShuttingDown("stop"))
    assert isinstance(world.outcomes[0], ShuttingDown)
    assert world.link.calls[-2:] == ["kill", "reap"]
    assert_old_serves(world)


def test_a_stop_lets_a_held_queue_go_on_with_the_old_engine(world: World) -> None:
    world.give_batch(world.link)
    world.change(drain_first=True)
    world.supervisor.cancel_change(ShuttingDown("stop"))
    assert len(world.outcomes) == 1
    assert world.ready == [world.link, world.link]
    assert_old_serves(world)


def test_a_stop_carries_through_a_change_that_the_queue_waits_for(world: World) -> None:
    world.change(drain_first=True)
    world.poll(2)
    world.supervisor.cancel_change(ShuttingDown("stop"))
    assert world.outcomes == []
    world.become_ready()
    world.poll()
    assert (world.outcomes, world.supervisor.state) == ([None], "ready")


def test_stopping_ends_every_engine(world: World) -> None:
    world.give_batch(world.link)
    world.change()
    world.become_ready()
    world.supervisor.stop()
    assert [link.calls[-2:] for link in world.links] == [["stop", "close"]] * 2
    assert world.supervisor.links == ()


def test_stopping_kills_an_engine_that_still_loads(world: World) -> None:
    world.change()
    world.supervisor.stop()
    assert world.link.calls[-3:] == ["kill", "stop", "close"]
