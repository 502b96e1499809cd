"""Batches too large for the device: split until they fit, in few runs, and the daemon is told what does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gpu_server.engine.runner import Pending, Runner
from gpu_server.models.base import Model
from gpu_server.wire import Tensor, Tensors

CPU = torch.device("cpu")


class Hungry(Model):
    """Answers each row's sum; has memory for `limit` tokens."""

    inputs: ClassVar[Mapping[str, Any]] = {"ids": ("i32", (-1,))}
    cost: ClassVar[str] = "ids"  # type: ignore[misc]

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused: list[int] = []
        self.ran: list[int] = []

    def forward(self, batch: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
        rows = batch["ids"]
        tokens = sum(map(len, rows))
        if tokens > self.limit:
            self.refused.append(tokens)
            raise torch.OutOfMemoryError(f"CUDA out of memory at {tokens} tokens")
        self.ran.append(len(rows))
        return torch.stack([row.sum() for row in rows])


def rows(*lengths: int) -> Tensors:
    return {"ids": Tensor.from_rows([np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)])}


def started(model: Model, inputs: Tensors) -> Pending:
    return Runner(model, CPU).enqueue(inputs, {})


@pytest.mark.parametrize("limit", [10, 37, 64, 500, 639])
def test_every_item_that_fits_alone_is_answered(limit: int) -> None:
    model = Hungry(limit)
    pending = started(model, rows(*[10] * 64))
    outputs, errors = pending.wait()
    assert errors == []
    assert outputs["output"].to_numpy().tolist() == [10 * (i + 1) for i in range(64)]
    assert len(model.refused) <= 7
    assert 10 <= pending.fitting <= max(10, limit)


def test_parts_known_not_to_fit_are_not_tried() -> None:
    model = Hungry(20)
    started(model, rows(*[10] * 64)).wait()
    assert model.refused == [640, 320, 160, 80, 40]
    assert model.ran == [2] * 32


def test_an_item_too_large_alone_fails_alone_and_costs_the_others_little() -> None:
    model = Hungry(300)
    pending = started(model, rows(*[5] * 20, 1000, *[5] * 20))
    _, errors = pending.wait()
    assert [(e.item, e.code) for e in errors] == [(20, "out_of_memory")]
    assert pending.fitting > 300
    assert len(model.ran) <= 8


def test_a_batch_that_fits_or_fails_otherwise_teaches_nothing() -> None:
    pending = started(Hungry(100), rows(10, 10))
    pending.wait()
    assert pending.fitting == 0


def test_the_failed_forwards_tensors_are_gone_before_the_first_half_runs() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Pinning(Hungry):
        def forward(self, batch: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
            alive.append(sum(ref() is not None for ref in held))
            activations = torch.zeros(1000)
            held.append(weakref.ref(activations))
            return super().forward(batch)

    gc.disable()
    try:
        started(Pinning(20), rows(10, 10, 10, 10)).wait()
    finally:
        gc.enable()
    assert alive == [0, 0, 0]
