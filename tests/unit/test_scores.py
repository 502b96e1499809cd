"""Scores of logits against torch's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_server.scores import activate
from gpu_server.wire.documents import Activation

LOGITS = np.random.default_rng(0).normal(0, 5, (6, 4)).astype(np.float32)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity", ""])
def test_equals_torch(activation: Activation) -> None:
    wide = torch.from_numpy(LOGITS).double()
    want = {"softmax": wide.softmax(-1), "sigmoid": wide.sigmoid()}.get(activation, wide).float().numpy()
    got = activate(LOGITS, activation)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_large_logits_do_not_overflow(activation: Activation) -> None:
    got = activate(np.array([[1e4, -1e4]], np.float32), activation)
    np.testing.assert_array_equal(got, [[1, 0]])


@pytest.mark.parametrize("shape", [(0, 3), (2, 1), (0, 0)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    for activation in ("softmax", "sigmoid"):
        assert activate(np.ones(shape, np.float32), activation).shape == shape
