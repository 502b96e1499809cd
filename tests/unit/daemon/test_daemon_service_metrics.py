"""What the service counts, and under which model."""

from __future__ import annotations

import pytest
from service_world import World


@pytest.fixture
def world() -> World:
    return World()


def test_an_answered_request_is_counted_with_its_wait(world: World) -> None:
    world.numbers(1, 2)
    world.clock.advance(0.5)
    world.answer()
    about = world.metrics.models["numbers"]
    assert (about.requests, about.items, about.success) == (1, 2, 1)
    assert (about.duration.total, about.queue.total) == (0.5, 0.0)
    assert (about.batch_items.total, about.inference.total) == (2, 0.001)


def test_the_wait_is_that_before_the_first_of_several_batches(world: World) -> None:
    for id_ in (b"0", b"1"):
        world.numbers(*range(8), id=id_)
    world.numbers(*range(16), id=b"2")
    world.clock.advance(0.5)
    while world.link.batches:
        world.answer()
        world.clock.advance(1.0)
    assert world.replies[-1][1].timing.queue_us == 500_000


def test_failures_are_counted_under_their_model(world: World) -> None:
    world.numbers(1, id=b"a")
    world.ask(id=b"c", op="cancel", target=b"a")
    world.ask(id=b"d", model="numbers")
    world.ask(id=b"e")
    world.ask(id=b"f", model="unknown")
    world.ask(id=b"g", op="unknown", model="numbers")
    failures = world.metrics.failures
    assert failures["numbers", "cancelled"] == 1
    assert failures["numbers", "invalid_request"] == 2
    assert failures["", "model_not_found"] == 1
    assert failures["", "unsupported_operation"] == 1
    assert sum(failures.values()) == 5


def test_a_request_of_a_lost_engine_is_a_retry(world: World) -> None:
    world.numbers(1)
    world.lose_engine()
    assert world.metrics.models["numbers"].retries == 1
    world.new_engine()
    world.service.dispatch()
    world.answer()
    assert world.metrics.models["numbers"].success == 1


def test_tokenising_here_is_timed(world: World) -> None:
    world.text("a text")
    world.clock.advance(0.25)
    world.pool.turn()
    assert world.metrics.models["text"].tokenize.total == 0.25


def test_a_text_that_is_not_tokenised_in_time_fails_under_its_model(world: World) -> None:
    world.text("a text", deadline_ms=100)
    world.clock.advance(0.2)
    world.service.expire()
    assert world.metrics.failures["text", "deadline_exceeded"] == 1
