"""Inputs that failed before: counted by digest, refused for a while, never at the cost of others."""

from __future__ import annotations

import numpy as np
import pytest
from daemon_fakes import Clock, make_request

from gpu_server.daemon import quarantine
from gpu_server.daemon.quarantine import MAX_KNOWN, REFUSED_S, Quarantine
from gpu_server.daemon.request import Request
from gpu_server.errors import EngineCrashed, ModelFailed
from gpu_server.wire import ItemError, Tensor


def numbers(*values: int, **options: object) -> Request:
    inputs = {"x": Tensor.from_numpy(np.array(values))}
    return make_request(*[1] * len(values), inputs=inputs, **options)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> Quarantine:
    return Quarantine(clock)


def fail(table: Quarantine, request: Request, item: int = 0, code: str = "model_failed") -> None:
    table.note_items(request, "v1", [ItemError(item, code, "the model raised ValueError")])


def test_the_second_failure_of_an_input_is_its_last_run(table: Quarantine, clock: Clock) -> None:
    fail(table, numbers(1, 13, 2), 1)
    table.check(numbers(13), "v1")
    fail(table, numbers(13))
    with pytest.raises(
        ModelFailed, match="the model raised ValueError; this input failed before and is refused for 300 s"
    ):
        table.check(numbers(13), "v1")
    clock.advance(REFUSED_S + 1)
    table.check(numbers(13), "v1")


def test_what_only_resembles_it_is_let_in(table: Quarantine) -> None:
    fail(table, numbers(13))
    fail(table, numbers(13))
    table.check(numbers(14), "v1")
    table.check(numbers(13), "v2")
    table.check(numbers(13, params={"factor": 2}), "v1")
    table.check(make_request(1, inputs={"y": Tensor.from_numpy(np.array([13]))}), "v1")


def test_a_request_with_such_an_item_rides_alone(table: Quarantine) -> None:
    fail(table, numbers(13))
    fail(table, numbers(13))
    clean, mixed, large = numbers(1, 2), numbers(1, 13), numbers(*[13] * (quarantine.MAX_LOOKED_AT + 1))
    for request in (clean, mixed, large):
        table.check(request, "v1")
    assert [r.suspect for r in (clean, mixed, large)] == [False, True, False]
    assert mixed.group != clean.group


def test_failures_far_apart_or_not_of_the_models_making_do_not_count(table: Quarantine, clock: Clock) -> None:
    fail(table, numbers(13))
    clock.advance(REFUSED_S + 1)
    fail(table, numbers(13))
    fail(table, numbers(5), code="out_of_memory")
    fail(table, numbers(5), code="out_of_memory")
    table.check(numbers(13), "v1")
    table.check(numbers(5), "v1")


def test_what_ended_the_engine_twice_is_refused_as_it_is(table: Quarantine) -> None:
    table.note_crash(
        numbers(1, 2, 3), "v1", EngineCrashed("the engine process died while it ran this request, twice")
    )
    with pytest.raises(ModelFailed, match="died while it ran this request, twice; this input failed before"):
        table.check(numbers(1, 2, 3), "v1")
    table.check(numbers(1, 2), "v1")


def test_the_table_is_bounded(table: Quarantine) -> None:
    for value in range(MAX_KNOWN + 1):
        fail(table, numbers(value))
        fail(table, numbers(value))
    table.check(numbers(0), "v1")
    with pytest.raises(ModelFailed):
        table.check(numbers(1), "v1")
