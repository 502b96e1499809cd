"""What `forward` gets of a batch unless a model says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpu_server.models.base import Model
from gpu_server.wire import Tensor


def collated(tensor: Tensor) -> Any:
    return Model().collate({"x": tensor}, torch.device("cpu"))["x"]


def bfloat16(values: list[float]) -> bytes:
    """The upper halves of float32."""
    return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


def test_dense_bfloat16() -> None:
    batch = collated(Tensor("bf16", (2, 2), bfloat16([1, -2, 0.5, 3])))
    assert (batch.dtype, batch.tolist()) == (torch.bfloat16, [[1, -2], [0.5, 3]])


def test_ragged_bfloat16() -> None:
    batch = collated(Tensor("bf16", (3, -1, 2), bfloat16([1, 2, 3, 4]), [0, 1, 1, 2]))
    assert [row.tolist() for row in batch] == [[[1, 2]], [], [[3, 4]]]


@pytest.mark.parametrize("dtype", ["bf16", "f32", "i64"])
def test_a_batch_without_any_element(dtype: str) -> None:
    assert collated(Tensor(dtype, (2, 0), b"")).shape == (2, 0)
    rows = collated(Tensor(dtype, (2, -1, 3), b"", [0, 0, 0]))
    assert [row.shape for row in rows] == [(0, 3), (0, 3)]
    assert {row.dtype for row in rows} == {collated(Tensor(dtype, (0,), b"")).dtype}


def test_a_batch_is_the_models_own() -> None:
    data = bytearray(bfloat16([1, 2]))
    batch = collated(Tensor("bf16", (2,), data))
    data[:] = bytes(4)
    assert batch.tolist() == [1, 2]
