"""What a model's own example must be, and must give before callers are let in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpu_server.engine import verify
from gpu_server.engine.runner import Runner
from gpu_server.errors import ConfigError, InvalidRequest, ModelFailed, OutOfMemory
from gpu_server.models.base import Model
from gpu_server.wire import Tensor
from gpu_server.wire.documents import InputInfo, ModelInfo


def floats(*values: float) -> Tensor:
    return Tensor.from_numpy(np.array([values], np.float32))


def test_finite_numbers_and_what_has_none_pass() -> None:
    verify.check_finite(
        "m", {"y": floats(1.0, -2.0), "n": Tensor.from_numpy(np.array([1])), "s": Tensor.from_strings(["a"])}
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_enough(value: float) -> None:
    with pytest.raises(
        ModelFailed, match="model 'm' answers its own example with NaN or infinity in output 'y'"
    ):
        verify.check_finite("m", {"x": floats(1.0), "y": floats(1.0, value)})


class Raising(Model):
    """Raises what it is given, on a batch that holds a 7."""

    check_finite = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def forward(self, batch: Any) -> torch.Tensor:
        if 7 in batch["x"]:
            raise self.error
        answer: torch.Tensor = batch["x"].float()
        return torch.where(answer == 8, torch.nan, answer)


def run(error: Exception, *values: int) -> None:
    info = ModelInfo(name="m", source="mod:M", inputs=(InputInfo("x", "i64"),))
    verify.run(info, Runner(Raising(error), torch.device("cpu")), {"x": list(values)})


@pytest.mark.parametrize("values", [(7,), (1, 7, 2)])
def test_an_item_that_failed_fails_the_model_and_names_the_place(values: tuple[int, ...]) -> None:
    run(KeyError("layer"), 1, 2)
    place = rf"\(test_engine_verify\.py:{Raising.forward.__code__.co_firstlineno + 2}\)$"
    with pytest.raises(ModelFailed, match=rf"^model 'm' fails on its own example: KeyError: 'layer' {place}"):
        run(KeyError("layer"), *values)


def test_what_the_model_says_itself_is_said_and_keeps_its_kind() -> None:
    with pytest.raises(InvalidRequest, match=r"model 'm' fails on its own example: no square$"):
        run(InvalidRequest("no square"), 7)
    with pytest.raises(OutOfMemory, match="model 'm' fails on its own example: "):
        run(torch.OutOfMemoryError("CUDA out of memory"), 7)


def test_an_error_that_was_got_over_is_not_blamed_for_the_next() -> None:
    with pytest.raises(ModelFailed, match="on its own example: output 'output' holds NaN"):
        run(KeyError("layer"), 8)


SHAPES = ModelInfo(
    name="m",
    source="mod:M",
    inputs=(
        InputInfo("f", "f32", (3,)), InputInfo("ids", "i32", (-1,)), InputInfo("b", "bf16", (2,)), InputInfo("s", "utf8"),
    ),
)  # fmt: skip
GOOD: dict[str, Any] = {"f": [[1, 2, 3]], "ids": [[1, 2]], "b": [[1.5, -2]], "s": ["a"]}


def test_an_example_has_the_form_of_a_request() -> None:
    got = verify.requested(SHAPES, GOOD)
    assert [(t.dtype, t.shape) for t in got.values()] == [
        ("f32", (1, 3)), ("i32", (1, -1)), ("bf16", (1, 2)), ("utf8", (1,)),
    ]  # fmt: skip
    assert got["ids"].offsets == [0, 2]
    assert got["b"].to_numpy().tolist() == [[1.5, -2]]
    assert verify.requested(SHAPES, got) == got
    assert verify.requested(ModelInfo(name="any"), {"x": [[1.0]]})["x"].dtype == "f32"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"f": [5]}, r"input 'f' must be f32 \[items, 3\]; got f32 \[1\]"),
        ({"f": ["x"]}, "input 'f': strings cannot be sent as f32"),
        ({"ids": [[1.5]]}, "input 'ids': floats where int32 is expected"),
        ({"ids": [[1 << 40]]}, "input 'ids': values outside int32"),
        ({"s": [1]}, "input 's': numbers cannot be sent as utf8"),
        ({"more": [1]}, "model 'm' has no input 'more'"),
        ({"f": Tensor.from_numpy(np.zeros((1, 3)))}, r"input 'f' must be f32 \[items, 3\]; got f64 \[1, 3\]"),
    ],
)
def test_an_example_that_no_request_could_be(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^mod:M: its example is no valid request: {reason}$"):
        verify.requested(SHAPES, GOOD | wrong)


def test_an_example_that_lacks_an_input() -> None:
    with pytest.raises(ConfigError, match="no valid request: model 'm' needs the input 's'"):
        verify.requested(SHAPES, {name: values for name, values in GOOD.items() if name != "s"})
    with pytest.raises(ConfigError, match="no valid request: infer needs at least one input"):
        verify.requested(ModelInfo(name="any"), {})
