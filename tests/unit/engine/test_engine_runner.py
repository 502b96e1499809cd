"""One model on one device: good batches, and finding the item that breaks one in few runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, log2
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.engine.isolation import Answer
from gpu_server.engine.runner import Runner
from gpu_server.errors import DeviceLost, InvalidRequest, ModelFailed, OutOfMemory, RemoteError
from gpu_server.models.base import Model
from gpu_server.wire import Tensor, Tensors

CPU = torch.device("cpu")
Forward = Callable[[torch.Tensor], Any]


class Doubler(Model):
    """Doubles each number, unless the test's `forward` says otherwise; counts its runs."""

    def __init__(self, forward: Forward = lambda x: x * 2) -> None:
        self.runs: list[int] = []
        self._forward = forward

    def forward(self, batch: Mapping[str, torch.Tensor], **params: Any) -> Any:
        self.runs.append(len(batch["x"]))
        return self._forward(batch["x"])


def numbers(count: int) -> Tensors:
    return {"x": Tensor.from_numpy(np.arange(count, dtype=np.float32))}


def run(forward: Forward, count: int) -> tuple[Answer, Doubler]:
    model = Doubler(forward)
    return Runner(model, CPU).run(numbers(count)), model


def poisoned(bad: set[int], kind: Callable[[], Exception] = lambda: ValueError("secret path")) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if bad & {int(value) for value in x}:
            raise kind()
        return x * 2

    return forward


def test_a_good_batch_is_one_run_without_gradients() -> None:
    seen = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_inference_mode_enabled())
        return x * 2

    (outputs, errors), model = run(forward, 5)
    assert outputs["output"].to_numpy().tolist() == [0, 2, 4, 6, 8]
    assert (errors, model.runs, seen) == ([], [5], [True])


def test_parameters_reach_the_model() -> None:
    class Scaler(Model):
        def forward(self, batch: Mapping[str, torch.Tensor], factor: int = 1) -> torch.Tensor:
            return batch["x"] * factor

    outputs, _ = Runner(Scaler(), CPU).run(numbers(2), {"factor": 3})
    assert outputs["output"].to_numpy().tolist() == [0, 3]


@pytest.mark.parametrize("count", [2, 3, 7, 64, 100, 1000])
@pytest.mark.parametrize("where", [0.0, 0.37, 1.0])
def test_one_bad_item_is_found_in_few_runs_and_the_others_are_answered(count: int, where: float) -> None:
    bad = int(where * (count - 1))
    (outputs, errors), model = run(poisoned({bad}), count)
    assert [(e.item, e.code) for e in errors] == [(bad, "model_failed")]
    expected = [0 if n == bad else 2 * n for n in range(count)]
    assert outputs["output"].to_numpy().tolist() == expected
    assert len(model.runs) <= 2 * ceil(log2(count)) + 1


@given(st.integers(2, 40), st.sets(st.integers(0, 39), max_size=6))
def test_no_good_answer_is_ever_wrong_and_no_bad_item_gets_one(count: int, bad: set[int]) -> None:
    bad = {item for item in bad if item < count}
    model = Doubler(poisoned(bad))
    try:
        outputs, errors = Runner(model, CPU).run(numbers(count))
    except ModelFailed:
        assert bad
        return
    failed = {error.item for error in errors}
    assert bad <= failed
    values = outputs["output"].to_numpy().tolist() if len(failed) < count else []
    for item, value in enumerate(values):
        assert value == (0 if item in failed else 2 * item)
    assert len(model.runs) <= 1 + 4 * (count.bit_length() + 1)


def test_a_model_that_fails_on_everything_is_not_run_forever() -> None:
    (outputs, errors), model = run(poisoned(set(range(1024))), 1024)
    assert (outputs, len(errors)) == ({}, 1024)
    assert {(e.code, e.message) for e in errors} == {
        (code, "the model raised ValueError") for code in ("model_failed", "cancelled")
    }
    assert len(model.runs) <= 50


def test_what_callers_hear_holds_no_secrets() -> None:
    with pytest.raises(ModelFailed) as error:
        run(poisoned({0}), 1)
    assert "secret" not in error.value.message


def test_each_batch_has_its_own_error_whatever_was_started_meanwhile() -> None:
    runner = Runner(Doubler(poisoned({7})), CPU)
    values = ([7, 1], [1, 2], [3, 7, 4])
    batches = [runner.enqueue({"x": Tensor.from_numpy(np.array(batch, np.float32))}, {}) for batch in values]
    for batch in batches:
        batch.wait()
    line = poisoned.__code__.co_firstlineno + 3
    raised = ("ValueError", "secret path", f" (test_engine_runner.py:{line})")
    assert [batch.raised for batch in batches] == [raised, None, raised]


def test_an_error_made_for_callers_is_passed_on() -> None:
    (_, errors), _ = run(poisoned({1}, lambda: InvalidRequest("image 3 is not square")), 4)
    assert [(e.item, e.code, e.message) for e in errors] == [(1, "invalid_request", "image 3 is not square")]


def hungry(limit: int) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) > limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory at {len(x)} items")
        return x * 2

    return forward


@pytest.mark.parametrize("limit", [1, 3, 8, 31])
def test_a_batch_too_large_for_memory_is_halved_until_it_fits(limit: int) -> None:
    (outputs, errors), model = run(hungry(limit), 16)
    assert outputs["output"].to_numpy().tolist() == [2 * n for n in range(16)] or errors
    if limit >= 3:
        assert errors == []
    assert model.runs[0] == 16


def test_an_item_too_large_for_memory_alone_is_its_own_error() -> None:
    with pytest.raises(OutOfMemory) as error:
        run(hungry(0), 1)
    assert error.value.message == "the device has not enough memory for this input"


@pytest.mark.parametrize(
    "kind",
    [
        lambda: torch.AcceleratorError("CUDA error: device-side assert triggered"),
        lambda: RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
    ],
)
def test_a_lost_device_is_not_retried(kind: Callable[[], Exception]) -> None:
    model = Doubler(poisoned({1}, kind))
    with pytest.raises(DeviceLost) as error:
        Runner(model, CPU).run(numbers(4))
    assert model.runs == [4]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [lambda x: x[:-1], lambda x: torch.cat([x, x]), lambda x: x[:0]])
def test_a_wrong_number_of_rows_is_the_models_failure(wrong: Forward) -> None:
    with pytest.raises(ModelFailed, match=r"output 'output' has \d rows for \d items"):
        run(wrong, 1)


@pytest.mark.parametrize("output", [None, 3, "text", object(), torch.tensor(1.0), {}, {"a": {1: 2}}])
def test_what_cannot_be_sent_is_the_models_failure(output: object) -> None:
    with pytest.raises(ModelFailed):
        run(lambda x: output, 1)


def test_rows_that_are_not_finite_fail_alone_when_asked_for() -> None:
    class Checked(Doubler):
        check_finite: ClassVar[bool] = True  # type: ignore[misc]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.where(x == 1, torch.nan, x), torch.where(x == 3, torch.inf, x)], dim=1)

    outputs, errors = Runner(Checked(forward), CPU).run(numbers(5))
    assert [(e.item, e.code) for e in errors] == [(1, "model_failed"), (3, "model_failed")]
    assert outputs["output"].shape == (5, 2)
    unchecked, none = Runner(Doubler(forward), CPU).run(numbers(5))
    assert (unchecked["output"].shape, none) == ((5, 2), [])


class Contagious(Doubler):
    """Answers from one buffer; a NaN makes every row of its batch one."""

    check_finite: ClassVar[bool] = True  # type: ignore[misc]

    def __init__(self) -> None:
        buffer = torch.zeros(8)
        super().__init__(lambda x: torch.add(x, 0 * x.sum(), out=buffer[: len(x)]))


def test_neighbours_of_a_poisoned_item_are_answered_while_the_next_batch_is_on_its_way() -> None:
    model = Contagious()
    runner = Runner(model, CPU)
    batches = [np.array(values, np.float32) for values in ([1, 2, np.inf, 4, 5], [6, 7, 8])]
    first, second = (runner.enqueue({"x": Tensor.from_numpy(values)}, {}) for values in batches)
    outputs, errors = first.wait()
    assert [(e.item, e.message) for e in errors] == [(2, "output 'output' holds NaN or infinity")]
    assert outputs["output"].to_numpy().tolist() == [1, 2, 0, 4, 5]
    assert model.runs == [5, 3, 2, 3, 1, 2]
    assert (second.wait()[0]["output"].to_numpy().tolist(), second.fitting) == ([6, 7, 8], 0)
    assert len(model.runs) == 6


def test_an_item_that_is_not_finite_alone_is_run_once() -> None:
    model = Contagious()
    _, errors = Runner(model, CPU).run({"x": Tensor.from_numpy(np.array([np.nan], np.float32))})
    assert ([e.code for e in errors], model.runs) == (["model_failed"], [1])


def test_an_item_error_of_a_half_keeps_its_number() -> None:
    class Checked(Doubler):
        check_finite: ClassVar[bool] = True  # type: ignore[misc]

    def forward(x: torch.Tensor) -> torch.Tensor:
        if 0 in x:
            raise ValueError
        return torch.where(x == 6, torch.nan, x)

    outputs, errors = Runner(Checked(forward), CPU).run(numbers(8))
    assert [error.item for error in errors] == [0, 6]
    assert outputs["output"].to_numpy()[[1, 5, 7]].tolist() == [1, 5, 7]


def test_ragged_outputs_of_failed_items_are_empty() -> None:
    def forward(x: torch.Tensor) -> list[torch.Tensor]:
        if 2 in x:
            raise ValueError
        return [value.repeat(int(value)) for value in x]

    (outputs, errors), _ = run(forward, 4)
    assert [error.item for error in errors] == [2]
    assert [row.tolist() for row in outputs["output"].rows()] == [[], [1], [], [3, 3, 3]]


def test_a_batch_is_started_before_it_is_waited_for() -> None:
    model = Doubler()
    pending = Runner(model, CPU).enqueue(numbers(2), {})
    assert (pending.ready(), model.runs) == (True, [2])
    assert pending.wait()[0]["output"].items == 2


def test_an_error_at_the_start_is_raised_by_wait() -> None:
    pending = Runner(Doubler(poisoned({0})), CPU).enqueue(numbers(1), {})
    with pytest.raises(RemoteError):
        pending.wait()


@pytest.mark.parametrize(
    "changing",
    [
        lambda x: {"a" if 0 in x else "b": x},
        lambda x: {"a": x, "b": x} if 0 in x else {"a": x},
        lambda x: x if 0 in x else x.double(),
        lambda x: x if 0 in x else x[:, None],
        lambda x: x if 0 in x else list(x[:, None]),
    ],
)
def test_halves_whose_outputs_differ_are_the_models_failure(changing: Forward) -> None:
    def forward(x: torch.Tensor) -> Any:
        if len(x) > 2:
            raise ValueError
        return changing(x)

    with pytest.raises(ModelFailed, match="outputs change in name, type or shape"):
        run(forward, 4)


@pytest.mark.parametrize(
    "kind",
    [
        lambda: InvalidRequest("lone \ud800"),
        lambda: InvalidRequest(3),  # type: ignore[arg-type]
        lambda: InvalidRequest("x", {"a": {"b": 1}}),
        lambda: InvalidRequest("x", {"a": object()}),
        lambda: InvalidRequest("x", {"a": 1 << 80}),
    ],
)
def test_an_error_that_has_no_wire_form_is_replaced(kind: Callable[[], Exception]) -> None:
    with pytest.raises(ModelFailed, match="raised InvalidRequest with contents that cannot be sent"):
        run(poisoned({0}, kind), 1)
    batch = Runner(Doubler(poisoned({0}, kind)), CPU).enqueue(numbers(1), {})
    with pytest.raises(ModelFailed):
        batch.wait()
    assert batch.raised is not None and batch.raised.kind == "InvalidRequest"
