"""A batch that is not due yet waits, however often the service is asked, and leaves as soon as something lets it."""

from __future__ import annotations

import pytest
from service_world import World

from gpu_server.daemon.pace import LEARNT


@pytest.fixture
def world() -> World:
    """An engine known to run a batch for 0.1 s, with one begun and a request behind it."""
    made = World()
    for number in range(LEARNT):
        made.numbers(number)
        made.clock.advance(0.1)
        made.answer(compute_us=100_000)
    made.link.sent.clear()
    made.numbers(1, id=b"runs")
    made.numbers(2, id=b"waits")
    assert len(made.link.sent) == 1
    return made


def due(world: World) -> float:
    at = world.service.dispatch()
    assert at is not None
    return at


def test_it_leaves_when_it_is_due_with_what_came_meanwhile(world: World) -> None:
    at = due(world)
    assert world.clock.now < at < world.clock.now + 0.1
    world.numbers(3, id=b"later")
    assert due(world) == at
    world.clock.now = at - 1e-6
    world.service.dispatch()
    assert len(world.link.sent) == 1
    world.clock.now = at
    world.service.dispatch()
    assert [batch.items for batch in world.link.sent] == [1, 2]


def test_it_leaves_when_the_one_before_ends_early(world: World) -> None:
    assert due(world) > world.clock.now
    world.clock.advance(0.001)
    world.answer(compute_us=1000)
    assert [batch.items for batch in world.link.sent] == [1, 1]


def test_it_leaves_when_another_engine_is_ready(world: World) -> None:
    assert due(world) > world.clock.now
    world.new_engine()
    world.service.dispatch()
    assert [batch.items for batch in world.link.sent] == [1]


def test_it_waits_for_room_until_a_batch_ends(world: World) -> None:
    world.clock.now = due(world)
    world.service.dispatch()
    world.numbers(3, id=b"third")
    assert world.service.dispatch() is None
    world.clock.advance(1.0)
    assert world.service.dispatch() is None
    assert len(world.link.sent) == 2
    world.answer(compute_us=100_000)
    world.clock.now = due(world)
    world.service.dispatch()
    assert [batch.items for batch in world.link.sent] == [1, 1, 1]


def test_it_is_gone_with_its_request(world: World) -> None:
    assert due(world) > world.clock.now
    world.ask(op="cancel", id=b"c", target=b"waits")
    assert world.service.dispatch() is None
    world.numbers(4, id=b"next")
    world.clock.now = due(world)
    world.service.dispatch()
    assert [batch.items for batch in world.link.sent] == [1, 1]


@pytest.mark.parametrize(("batch_s", "sent"), [(0.0005, 4), (0.0015, 4), (0.002, 3), (0.003, 2)])
def test_behind_brief_batches_there_are_more(batch_s: float, sent: int) -> None:
    made, full = World(), range(8)
    for _ in range(LEARNT):
        made.numbers(*full)
        made.clock.advance(batch_s)
        made.answer(compute_us=int(batch_s * 1e6))
    made.link.sent.clear()
    for number in range(5):
        made.numbers(*full, id=b"%d" % number)
    for _ in range(100):
        made.clock.advance(0.0001)
        made.service.dispatch()
    assert len(made.link.sent) == sent
