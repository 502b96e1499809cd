"""Whatever items of a batch fail, in whatever order: no item is given the error of another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.engine.isolation import CHANGING, Answer, Isolation
from gpu_server.errors import InvalidRequest, ModelFailed, RemoteError
from gpu_server.wire import ItemError, Tensor, Tensors

POISON = 1000
WHOLE = "the batch failed"


def numbers(inputs: Tensors) -> list[int]:
    return [int(value) for value in inputs["x"].to_numpy()]


def refusal(value: int) -> RemoteError:
    """What is wrong with a number: no two have it in the same words, and odd ones are the caller's fault."""
    return (InvalidRequest if value % 2 else ModelFailed)(f"not {value}")


def forward(inputs: Tensors) -> Answer | RemoteError:
    """Doubles numbers, and fails on the first of a batch that is from `POISON` on."""
    values = numbers(inputs)
    bad = next((value for value in values if value >= POISON), None)
    return ({"y": Tensor.from_numpy(np.array(values) * 2)}, []) if bad is None else refusal(bad)


def isolate(values: list[int]) -> Answer:
    isolation = Isolation(forward, lambda inputs: inputs["x"].items, lambda: None)
    return isolation.answer({"x": Tensor.from_numpy(np.array(values))}, ModelFailed(WHOLE))


def own(item: int, value: int) -> ItemError:
    error = refusal(value)
    return ItemError(item, error.code, error.message)


@given(st.lists(st.integers(1, 9) | st.integers(POISON, POISON + 9), min_size=2, max_size=64))
def test_each_item_has_its_answer_or_its_own_error_or_is_not_told_apart(values: list[int]) -> None:
    try:
        outputs, errors = isolate(values)
    except RemoteError as error:
        assert (error.message, max(values) >= POISON) == (WHOLE, True)
        return
    told = {error.item: error for error in errors}
    assert [error.item for error in errors] == sorted(told)
    for item, value in enumerate(values):
        if item not in told:
            assert (value < POISON, outputs["y"].to_numpy()[item]) == (True, 2 * value)
        elif told[item].code != "cancelled":
            assert told[item] == own(item, value)


def test_an_item_beside_culprits_that_is_not_told_apart_is_not_blamed() -> None:
    _, errors = isolate([POISON, POISON, POISON, 1, POISON, 1])
    code = {error.item: error.code for error in errors}
    assert code[0] == "model_failed"
    assert code.get(5) != "model_failed"


def test_two_that_fail_side_by_side_keep_their_own_errors() -> None:
    values = [POISON + 1, POISON + 2, POISON + 3, POISON + 4, 5, 6, 7, 8]
    outputs, errors = isolate(values)
    assert errors == [own(item, values[item]) for item in range(4)]
    assert outputs["y"].to_numpy().tolist() == [0, 0, 0, 0, 10, 12, 14, 16]


def test_a_batch_of_culprits_alone_is_told_apart_too() -> None:
    values = [POISON + 1, POISON + 2, POISON + 3]
    assert isolate(values) == ({}, [own(item, value) for item, value in enumerate(values)])


def test_an_item_that_failed_alone_keeps_its_error_where_the_outputs_of_others_differ() -> None:
    def changing(inputs: Tensors) -> Answer | RemoteError:
        values = numbers(inputs)
        if len(values) > 1 or values[0] >= POISON:
            return refusal(values[0])
        return {f"y{values[0]}": inputs["x"]}, []

    isolation = Isolation(changing, lambda inputs: inputs["x"].items, lambda: None)
    outputs, errors = isolation.answer(
        {"x": Tensor.from_numpy(np.array([POISON, 1, 2, 3]))}, ModelFailed(WHOLE)
    )
    assert errors[0] == own(0, POISON)
    assert {error.message for error in errors[2:]} == {CHANGING}
    assert {error.code for error in errors[2:]} == {"cancelled"}
    assert list(outputs) == ["y1"]


def test_one_culprit_is_found() -> None:
    outputs, errors = isolate([*range(1, 40), POISON, *range(40, 64)])
    assert errors == [own(39, POISON)]
    assert outputs["y"].items == 64


class Spreading:
    """Doubles numbers; one from `POISON` on makes the rows of its neighbours not finite too, up to `reach` items away."""

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self.runs: list[list[int]] = []

    def __call__(self, inputs: Tensors) -> Answer:
        values = numbers(inputs)
        self.runs.append(values)
        bad = [item for item, value in enumerate(values) if value >= POISON]
        hit = [n for n in range(len(values)) if any(abs(n - item) <= self._reach for item in bad)]
        rows = [0 if n in hit else 2 * value for n, value in enumerate(values)]
        return {"y": Tensor.from_numpy(np.array(rows))}, [ItemError(n, *NAN) for n in hit]


NAN = ("model_failed", "output 'y' holds NaN or infinity")


def settle(values: list[int], reach: int) -> tuple[Answer, Spreading]:
    run = Spreading(reach)
    inputs = {"x": Tensor.from_numpy(np.array(values))}
    isolation = Isolation(run, lambda part: part["x"].items, lambda: None)
    first = run(inputs)
    run.runs.clear()
    return isolation.settle(inputs, first), run


@given(st.integers(2, 64), st.integers(0, 63), st.integers(0, 64))
def test_neighbours_of_one_poisoned_item_are_answered(count: int, where: int, reach: int) -> None:
    where %= count
    values = [*range(1, count + 1)]
    values[where] = POISON
    (outputs, errors), run = settle(values, reach)
    assert errors == [ItemError(where, *NAN)]
    expected = [0 if n == where else 2 * value for n, value in enumerate(values)]
    assert outputs["y"].to_numpy().tolist() == expected
    assert len(run.runs) <= 2 * (count - 1).bit_length() + 1


@given(
    st.lists(st.integers(1, 9) | st.integers(POISON, POISON + 9), min_size=2, max_size=64), st.integers(0, 64)
)
def test_no_item_is_blamed_for_another_and_the_work_is_bounded(values: list[int], reach: int) -> None:
    (outputs, errors), run = settle(values, reach)
    told = {error.item: error for error in errors}
    assert [error.item for error in errors] == sorted(told)
    for item, (value, row) in enumerate(zip(values, outputs["y"].to_numpy().tolist(), strict=True)):
        assert (value >= POISON) <= (item in told)
        assert row == (0 if item in told else 2 * value)
        if value < POISON and item in told:
            assert told[item].code == "cancelled"
    assert len(run.runs) <= 4 * (len(values).bit_length() + 1)


def test_only_rows_that_are_not_finite_run_again() -> None:
    values = [*range(1, 21), POISON, *range(21, 41)]
    (_, errors), run = settle(values, reach=1)
    assert [error.item for error in errors] == [20]
    assert {value for run in run.runs for value in run} == {20, POISON, 21}


def test_an_item_that_ran_alone_does_not_run_again() -> None:
    (_, errors), run = settle([POISON], reach=0)
    assert (errors, run.runs) == ([ItemError(0, *NAN)], [])


def test_rows_of_another_form_without_the_others_are_not_told_apart() -> None:
    """Such as those of a model that pads to the longest of a batch."""

    def padded(inputs: Tensors) -> Answer:
        values = numbers(inputs)
        rows = np.zeros((len(values), len(values)), np.float32)
        hit = len(values) if POISON in values else 0
        return {"y": Tensor.from_numpy(rows)}, [ItemError(n, *NAN) for n in range(min(hit, 3))]

    inputs = {"x": Tensor.from_numpy(np.array([POISON, 1, 2, 3]))}
    isolation = Isolation(padded, lambda part: part["x"].items, lambda: None)
    outputs, errors = isolation.settle(inputs, padded(inputs))
    assert [(error.item, error.code) for error in errors] == [
        (0, "model_failed"), (1, "cancelled"), (2, "cancelled"),
    ]  # fmt: skip
    assert outputs["y"].shape == (4, 4)


def test_rows_that_are_not_finite_in_a_half_of_a_batch_that_raised_run_again_too() -> None:
    spreading = Spreading(reach=64)

    def run(inputs: Tensors) -> Answer | RemoteError:
        return refusal(POISON + 1) if POISON + 1 in numbers(inputs) else spreading(inputs)

    inputs = {"x": Tensor.from_numpy(np.array([1, 2, POISON, 4, POISON + 1, 6, 7, 8]))}
    isolation = Isolation(run, lambda part: part["x"].items, lambda: None)
    outputs, errors = isolation.answer(inputs, ModelFailed(WHOLE))
    assert errors == [ItemError(2, *NAN), own(4, POISON + 1)]
    assert outputs["y"].to_numpy().tolist() == [2, 4, 0, 8, 0, 12, 14, 16]
