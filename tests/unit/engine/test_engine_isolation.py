"""Whatever items of a batch fail, in whatever order: no item is given the error of another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.engine.isolation import Answer, Isolation
from gpu_server.errors import ModelFailed, RemoteError
from gpu_server.wire import Tensor, Tensors

POISON = 1000


def numbers(inputs: Tensors) -> list[int]:
    return [int(value) for value in inputs["x"].to_numpy()]


def forward(inputs: Tensors) -> Answer | RemoteError:
    """Doubles numbers, and fails on a batch with one from `POISON` on."""
    values = numbers(inputs)
    if max(values) >= POISON:
        return ModelFailed("the model raised ValueError")
    return {"y": Tensor.from_numpy(np.array(values) * 2)}, []


def isolate(values: list[int]) -> Answer:
    isolation = Isolation(forward, lambda inputs: inputs["x"].items, lambda: None)
    return isolation.answer({"x": Tensor.from_numpy(np.array(values))}, ModelFailed("the batch failed"))


@given(st.lists(st.integers(1, 999) | st.just(POISON), min_size=2, max_size=64))
def test_each_item_has_its_answer_or_its_own_error_or_is_not_told_apart(values: list[int]) -> None:
    try:
        outputs, errors = isolate(values)
    except RemoteError as error:
        assert error.message == "the batch failed" or min(values) == POISON
        return
    code = {error.item: error.code for error in errors}
    for item, (value, y) in enumerate(zip(values, outputs["y"].to_numpy(), strict=True)):
        if value == POISON:
            assert code[item] in ("model_failed", "cancelled")
        else:
            assert code.get(item) == "cancelled" or (item not in code and y == 2 * value)


def test_an_item_beside_culprits_that_is_not_told_apart_is_not_blamed() -> None:
    _, errors = isolate([POISON, POISON, POISON, 1, POISON, 1])
    code = {error.item: error.code for error in errors}
    assert code[0] == "model_failed"
    assert code.get(5) != "model_failed"


def test_one_culprit_is_found() -> None:
    outputs, errors = isolate([*range(1, 40), POISON, *range(40, 64)])
    assert [(error.item, error.code) for error in errors] == [(39, "model_failed")]
    assert outputs["y"].items == 64
