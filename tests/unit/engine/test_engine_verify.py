"""What a model's own example must give before callers are let in."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_server.engine import verify
from gpu_server.errors import ModelFailed
from gpu_server.wire import ItemError, Tensor


def floats(*values: float) -> Tensor:
    return Tensor.from_numpy(np.array([values], np.float32))


def test_finite_numbers_and_what_has_none_pass() -> None:
    verify.check(
        "m",
        (
            {"y": floats(1.0, -2.0), "n": Tensor.from_numpy(np.array([1])), "s": Tensor.from_strings(["a"])},
            [],
        ),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_enough(value: float) -> None:
    with pytest.raises(
        ModelFailed, match="model 'm' answers its own example with NaN or infinity in output 'y'"
    ):
        verify.check("m", ({"x": floats(1.0), "y": floats(1.0, value)}, []))


def test_an_item_that_failed_fails_the_model() -> None:
    with pytest.raises(ModelFailed, match="model 'm' fails on its own example: no"):
        verify.check("m", ({"y": floats(0.0)}, [ItemError(0, "model_failed", "no")]))
