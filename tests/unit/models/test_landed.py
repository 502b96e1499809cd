"""Outputs in memory that the device writes and a later batch overwrites."""

from __future__ import annotations

import numpy as np

from gpu_server.engine import outputs
from gpu_server.models.landed import Landed


def test_rows_are_taken_once() -> None:
    memory = np.zeros((2, 3), np.float32)
    landed = Landed(memory)
    memory[:] = 1
    landed.take()
    memory[:] = 2
    landed.take()
    assert (landed.rows == 1).all()


def test_it_becomes_a_tensor_when_the_batch_has_ended() -> None:
    memory = np.zeros((2, 3), np.float32)
    staged = outputs.stage({"y": Landed(memory)})
    memory[:] = [[1, 2, 3], [4, np.nan, 6]]
    tensors, errors = outputs.finish(staged, 2, check_finite=True)
    assert tensors["y"].to_numpy().tolist() == [[1, 2, 3], [0, 0, 0]]
    assert [error.item for error in errors] == [1]
