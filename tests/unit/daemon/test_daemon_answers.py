"""Answers of batches on their way to requests: nobody pays for another's items, and each request gets one reply."""

from __future__ import annotations

import pytest
from daemon_fakes import engine_reply
from service_world import World

from gpu_server.errors import ModelFailed, RemoteError
from gpu_server.wire import ItemError, Tensor, Tensors, message
from gpu_server.wire.header import ErrorBody


@pytest.fixture
def world() -> World:
    """A service whose engine is busy with request 0, so that what comes next shares a batch."""
    made = World()
    made.numbers(0, id=b"0")
    return made


def doubled(world: World) -> Tensors:
    batch = next(iter(world.link.batches.values()))
    return {"y": Tensor.from_numpy(world.link.inputs[batch.id]["x"].to_numpy() * 2)}


def fail(world: World, error: RemoteError) -> None:
    """The engine fails its oldest batch as a whole."""
    body = ErrorBody(error.code, error.message, error.retryable)
    world.service.batch_done(world.link.pop(), engine_reply(error=body), {})
    world.service.dispatch()


def cancel(world: World, *rows: int) -> None:
    """The engine answers its oldest batch, but for rows that it did not tell apart."""
    outputs = doubled(world)
    errors = tuple(ItemError(row, "cancelled", "the model raised ValueError") for row in rows)
    world.service.batch_done(world.link.pop(), engine_reply(item_errors=errors), outputs)
    world.service.dispatch()


def test_a_batch_of_several_requests_that_fails_runs_again_one_by_one(world: World) -> None:
    for number in (1, 2, 3):
        world.numbers(number, id=b"%d" % number)
    world.answer()
    fail(world, ModelFailed("the model raised ValueError"))
    world.answer()
    fail(world, ModelFailed("the model raised ValueError"))
    world.answer()
    assert world.outcomes() == [(b"0", [0]), (b"1", [2]), (b"2", "model_failed"), (b"3", [6])]
    world.assert_nothing_is_kept()


def test_items_that_were_not_told_apart_run_again_with_their_own_request_only(world: World) -> None:
    world.numbers(1, 2, id=b"1")
    world.numbers(3, id=b"2")
    world.answer()
    cancel(world, 1)
    assert world.outcomes() == [(b"0", [0]), (b"2", [6])]
    world.answer()
    assert world.outcomes()[2:] == [(b"1", [2, 4])]
    world.assert_nothing_is_kept()


def test_what_is_not_told_apart_alone_either_is_the_models_failure(world: World) -> None:
    world.numbers(1, 2, 3, id=b"1")
    world.numbers(4, id=b"2")
    world.answer()
    cancel(world, 0)
    cancel(world, 0, 1)
    (_, header, _) = world.replies[-1]
    assert [(e.item, e.code) for e in header.item_errors] == [(0, "model_failed"), (1, "model_failed")]
    world.assert_nothing_is_kept()


def test_a_part_that_fails_leaves_the_rest_of_its_request(world: World) -> None:
    world.numbers(*range(12), id=b"1")
    world.answer()
    fail(world, ModelFailed("the model raised ValueError"))
    world.answer()
    (_, header, outputs) = world.replies[-1]
    assert [error.item for error in header.item_errors] == list(range(8))
    assert outputs["y"].to_numpy().tolist() == [0] * 8 + [16, 18, 20, 22]
    world.assert_nothing_is_kept()


def test_after_a_change_nothing_runs_again_on_an_engine_of_another_generation(world: World) -> None:
    world.numbers(1, id=b"1")
    world.numbers(2, id=b"2")
    world.answer()
    replaced = world.link
    world.new_engine(generation=1)
    world.link = replaced
    fail(world, ModelFailed("the model raised ValueError"))
    assert world.outcomes()[1:] == [(b"1", "engine_crashed"), (b"2", "engine_crashed")]
    world.assert_nothing_is_kept()


def test_errors_that_fit_no_reply_are_one_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "MAX_REPLY_HEADER_BYTES", 400)
    world.numbers(*range(1, 20), id=b"1")
    world.answer()
    while world.link.batches:
        world.answer(
            item_errors=dict.fromkeys(
                range(min(8, next(iter(world.link.batches.values())).items) - 1), "x" * 20
            )
        )
    assert world.outcomes() == [(b"0", [0]), (b"1", "model_failed")]
    world.assert_nothing_is_kept()


def test_an_input_that_failed_twice_is_refused(world: World) -> None:
    world.answer()
    for number in (1, 2):
        world.numbers(13, id=b"%d" % number)
        fail(world, ModelFailed("the model raised ValueError"))
    world.numbers(13, id=b"3")
    assert not world.link.batches
    (_, header, _) = world.replies[-1]
    assert header.error
    assert header.error.message.startswith("the model raised ValueError; this input failed before")


def test_items_of_two_shared_batches_in_flight_both_run_again(world: World) -> None:
    """By the time of the second answer the request rides alone, but that batch was formed before."""
    world.numbers(*range(5), id=b"1")
    world.numbers(*range(8), id=b"2")
    world.numbers(*range(3), id=b"3")
    world.answer()
    shared = [[piece[0].id for piece in batch.slices] for batch in world.link.batches.values()]
    assert shared == [[b"1", b"2"], [b"2", b"3"]]
    cancel(world, 5, 6, 7)
    cancel(world, 0, 1, 2, 3, 4)
    while world.link.batches:
        world.answer()
    assert sorted(world.outcomes()[1:]) == [
        (b"%d" % n, [2 * x for x in range(k)]) for n, k in ((1, 5), (2, 8), (3, 3))
    ]
    assert not any(header.item_errors for _, header, _ in world.replies)
    world.assert_nothing_is_kept()
