"""A new engine takes over while requests run and wait: each gets one answer, from one version of its model."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from daemon_fakes import FakeLink, engine_reply
from service_world import NUMBERS, TEXT, World

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.testing import byte_tokenizer
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.documents import ModelInfo


@pytest.fixture
def world() -> World:
    return World()


def changed(info: ModelInfo, **fields: Any) -> ModelInfo:
    return msgspec.structs.replace(info, **fields)


NEWER = changed(NUMBERS, version="v2")


def take_over(world: World, *models: ModelInfo) -> FakeLink:
    """A new engine with these models, that a change put in its place; returns the one that it replaces."""
    old, world.link = world.link, FakeLink(*models)
    world.link.generation = old.generation + 1
    world.link.tokenizers.update(dict.fromkeys(world.link.models, byte_tokenizer()))
    world.service.engine_ready(cast(EngineLink, world.link))
    world.service.dispatch()
    return old


def answer(world: World, link: FakeLink, factor: int) -> None:
    """A link answers its oldest batch with each number times a factor."""
    batch = link.pop()
    outputs: Tensors = {"y": Tensor.from_numpy(link.inputs[batch.id]["x"].to_numpy() * factor)}
    world.service.batch_done(batch, engine_reply(), outputs)


def versions(world: World) -> list[tuple[bytes, Any, object]]:
    return [
        (id_, value, header.version)
        for (id_, value), (_, header, _) in zip(world.outcomes(), world.replies, strict=True)
    ]


def test_what_runs_is_answered_by_the_old_engine_and_what_waits_by_the_new_one(world: World) -> None:
    world.numbers(1, id=b"a")
    world.numbers(2, id=b"b")
    old = take_over(world, NEWER, TEXT)
    assert (len(old.batches), len(world.link.batches)) == (1, 1)
    answer(world, world.link, 3)
    answer(world, old, 2)
    assert versions(world) == [(b"b", [6], "v2"), (b"a", [2], "v1")]
    world.assert_nothing_is_kept()


def test_a_request_that_has_begun_begins_anew_with_the_new_version(world: World) -> None:
    world.numbers(*range(20), id=b"a")
    old = world.link
    answer(world, old, 2)
    assert (len(old.batches), world.scheduler.items) == (1, 4)
    take_over(world, NEWER, TEXT)
    answer(world, old, 2)
    while world.link.batches:
        answer(world, world.link, 3)
    assert versions(world) == [(b"a", [3 * n for n in range(20)], "v2")]
    world.assert_nothing_is_kept()


def test_rows_of_a_running_batch_do_not_reach_a_request_that_began_anew(world: World) -> None:
    world.numbers(*range(20), id=b"a")
    old = take_over(world, NEWER, TEXT)
    assert [b.items for b in old.batches.values()] == [8, 8]
    while old.batches:
        answer(world, old, 2)
    assert world.replies == []
    while world.link.batches:
        answer(world, world.link, 3)
    assert versions(world) == [(b"a", [3 * n for n in range(20)], "v2")]
    assert world.metrics.dropped["late_result"] == 2
    world.assert_nothing_is_kept()


def test_rows_of_two_engines_do_not_mix_though_the_version_is_the_same(world: World) -> None:
    """A class may have read other weights, which no version tells."""
    world.numbers(*range(20), id=b"a")
    old = take_over(world, NUMBERS, TEXT)
    while old.batches:
        answer(world, old, 2)
    while world.link.batches:
        answer(world, world.link, 3)
    assert versions(world) == [(b"a", [3 * n for n in range(20)], "v1")]
    world.assert_nothing_is_kept()


def test_nor_where_the_old_engine_ended_before(world: World) -> None:
    world.numbers(*range(20), id=b"a")
    world.service.hold()
    while world.link.batches:
        answer(world, world.link, 2)
    take_over(world, NUMBERS, TEXT)
    while world.link.batches:
        answer(world, world.link, 3)
    assert versions(world) == [(b"a", [3 * n for n in range(20)], "v1")]
    world.assert_nothing_is_kept()


def test_a_held_engine_that_serves_on_goes_on_where_it_was(world: World) -> None:
    world.numbers(*range(20), id=b"a")
    world.service.hold()
    answer(world, world.link, 2)
    world.service.engine_ready(cast(EngineLink, world.link))
    world.service.dispatch()
    assert (sum(b.items for b in world.link.batches.values()), world.scheduler.items) == (8, 4)
    while world.link.batches:
        answer(world, world.link, 2)
    assert versions(world) == [(b"a", [2 * n for n in range(20)], "v1")]
    world.assert_nothing_is_kept()


def test_a_crash_costs_no_more_than_what_ran(world: World) -> None:
    world.numbers(*range(20), id=b"a")
    answer(world, world.link, 2)
    world.lose_engine()
    world.new_engine()
    world.service.dispatch()
    assert sum(batch.items for batch in world.link.batches.values()) + world.scheduler.items == 12


def test_when_the_replaced_engine_dies_the_new_one_answers_everything(world: World) -> None:
    world.numbers(*range(16), id=b"a")
    old = world.link
    answer(world, old, 2)
    take_over(world, NEWER, TEXT)
    assert (len(old.batches), world.link.sent) == (1, [])
    world.service.engine_lost(cast(EngineLink, old))
    world.service.dispatch()
    while world.link.batches:
        answer(world, world.link, 3)
    assert versions(world) == [(b"a", [3 * n for n in range(16)], "v2")]
    world.assert_nothing_is_kept()


def test_an_unloaded_model_answers_what_runs_and_refuses_what_waits(world: World) -> None:
    for id_ in (b"a", b"b"):
        world.numbers(*range(8), id=id_)
    world.numbers(1, id=b"c")
    old = take_over(world, TEXT)
    answer(world, old, 2)
    assert world.outcomes()[:2] == [(b"c", "model_not_found"), (b"a", [2 * n for n in range(8)])]
    world.service.engine_lost(cast(EngineLink, old))
    world.numbers(1, id=b"d", model="numbers")
    assert world.outcomes()[2:] == [(b"b", "model_not_found"), (b"d", "model_not_found")]
    world.assert_nothing_is_kept()


@pytest.mark.parametrize(
    "change",
    [{"params": {"scale": 1.0}}, {"inputs": ()}, {"text": TEXT.text}],
    ids=["params", "inputs", "text"],
)
def test_a_request_that_no_longer_fits_its_model_is_to_be_sent_again(
    world: World, change: dict[str, Any]
) -> None:
    for id_ in (b"a", b"b"):
        world.numbers(*range(8), id=id_)
    world.numbers(1, id=b"c")
    take_over(world, changed(NUMBERS, **change), TEXT)
    ((_, header, _),) = world.replies
    assert (header.id, header.error.code, header.error.retryable) == (b"c", "stale_tokenizer", True)


def test_a_held_queue_waits_and_loses_nothing(world: World) -> None:
    world.numbers(1, id=b"a")
    world.service.hold()
    old = world.link
    world.numbers(2, id=b"b")
    answer(world, old, 2)
    world.service.dispatch()
    assert (old.batches, world.outcomes()) == ({}, [(b"a", [2])])
    take_over(world, NEWER)
    answer(world, world.link, 3)
    assert versions(world) == [(b"a", [2], "v1"), (b"b", [6], "v2")]
    world.assert_nothing_is_kept()


def test_a_held_request_keeps_its_deadline(world: World) -> None:
    world.service.hold()
    world.numbers(2, id=b"b", deadline_ms=500)
    world.clock.advance(0.6)
    world.service.expire()
    assert world.outcomes() == [(b"b", "deadline_exceeded")]


def test_the_backlog_follows_a_change_of_the_budget(world: World) -> None:
    world.service.hold()
    world.numbers(*range(8), id=b"a")
    assert world.scheduler.backlog == pytest.approx(8 / 8)
    take_over(world, changed(NEWER, max_batch_tokens=4), TEXT)
    assert world.scheduler.backlog == pytest.approx(0)
    assert len(world.link.batches) == 2
