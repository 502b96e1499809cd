"""Requests that come before the first load is done wait for it, where they may."""

from __future__ import annotations

import pytest
from service_world import World

from gpu_server.daemon import waiting_room
from gpu_server.errors import ShuttingDown
from gpu_server.wire import ErrorBody


@pytest.fixture
def world() -> World:
    """A service whose first engine still loads."""
    return World(ready=False, max_early_bytes=100)


def error_of(world: World, number: int = -1) -> ErrorBody:
    error = world.replies[number][1].error
    assert isinstance(error, ErrorBody)
    return error


def test_they_run_when_the_models_are_there_the_oldest_first(world: World) -> None:
    world.numbers(1, id=b"a")
    world.numbers(2, id=b"b")
    world.ask(op="tokenizer", model="text", id=b"t")
    assert (world.replies, world.service.open_requests) == ([], 3)
    world.new_engine()
    world.service.dispatch()
    world.answer()
    assert world.outcomes() == [(b"t", []), (b"a", [2]), (b"b", [4])]
    world.assert_nothing_is_kept()


def test_the_time_they_waited_is_gone(world: World) -> None:
    world.numbers(1, id=b"a", deadline_ms=10_000)
    world.clock.now += 9.0
    world.new_engine()
    world.clock.now += 0.9
    world.service.expire()
    assert world.replies == []
    world.clock.now += 0.2
    world.service.expire()
    assert world.outcomes() == [(b"a", "deadline_exceeded")]


def test_one_whose_deadline_passes_is_told_what_it_waited_for(world: World) -> None:
    world.service.phase = "warming up numbers"
    world.numbers(1, id=b"a", deadline_ms=1000)
    assert world.service.next_deadline() == pytest.approx(world.clock.now + 1.0)
    world.clock.now += 1.0
    world.service.expire()
    assert (error_of(world).code, error_of(world).details) == (
        "model_loading",
        {"phase": "warming up numbers"},
    )
    world.assert_nothing_is_kept()


def test_nothing_is_due_once_all_have_left(world: World) -> None:
    world.numbers(1, id=b"a", deadline_ms=1000)
    world.new_engine()
    world.service.dispatch()
    world.answer()
    world.clock.now += 2.0
    world.service.expire()
    assert world.service.next_deadline() > world.clock.now


def test_what_is_wrong_is_refused_when_it_can_be_told(world: World) -> None:
    world.numbers(1, id=b"a", model="nope")
    world.new_engine()
    assert world.outcomes() == [(b"a", "model_not_found")]


def test_their_bytes_are_bounded(world: World) -> None:
    world.numbers(*range(12), id=b"a")
    world.numbers(1, id=b"b")
    assert (world.outcomes(), error_of(world).details) == ([(b"b", "overloaded")], {"retry_after_ms": 1000})
    world.ask(op="cancel", id=b"d", target=b"a")
    world.numbers(*range(12), id=b"e")
    assert world.outcomes()[1:] == [(b"a", "cancelled"), (b"d", [])]


def test_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_room, "MAX_WAITING", 1)
    world = World(ready=False, max_early_bytes=100)
    world.ask(op="tokenizer", id=b"a")
    world.ask(op="tokenizer", id=b"b")
    assert world.outcomes() == [(b"b", "overloaded")]
    world.service.peer_gone(b"p")
    world.ask(op="tokenizer", id=b"c")
    assert world.outcomes()[1:] == []


def test_one_sender_leaves_room_for_the_next(world: World) -> None:
    for number in range(10):
        world.numbers(1, id=b"%d" % number, peer=b"hog")
    assert world.outcomes() == [(b"9", "overloaded")]
    assert "of which this sender holds 72" in error_of(world).message
    world.numbers(1, id=b"a")
    assert world.outcomes()[1:] == []


def test_an_id_waits_once(world: World) -> None:
    world.numbers(1, id=b"a")
    world.numbers(2, id=b"a")
    assert world.outcomes() == [(b"a", "invalid_request")]


def test_a_lost_connection_takes_its_own_along(world: World) -> None:
    world.numbers(1, id=b"a", peer=b"p")
    world.numbers(2, id=b"a", peer=b"q")
    world.service.peer_gone(b"p")
    world.new_engine()
    world.service.dispatch()
    world.answer()
    assert [(peer, header.id) for peer, header, _ in world.replies] == [(b"q", b"a")]


@pytest.mark.parametrize("successor", [True, False])
def test_a_stop_sends_them_on(world: World, successor: bool) -> None:
    world.numbers(1, id=b"a")
    world.service.stop(successor)
    world.numbers(2, id=b"b")
    assert world.outcomes() == [(b"a", "shutting_down"), (b"b", "shutting_down")]
    for number in (0, 1):
        assert error_of(world, number).details == ({"successor": True} if successor else {})
    world.assert_nothing_is_kept()


def test_the_end_answers_them(world: World) -> None:
    world.numbers(1, id=b"a")
    world.service.fail_all(ShuttingDown("over"))
    assert world.outcomes() == [(b"a", "shutting_down")]
    world.assert_nothing_is_kept()
