"""Token classifiers against Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import with_heads
from heads import facts, loaded, rows_of, run, stock_logits
from transformers import AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES as HEADS

from gpu_server.errors import EngineStartFailed
from gpu_server.models.text.stock_head import StockHead

MakeModel = Callable[..., Path]


@pytest.mark.parametrize("family", [*with_heads(HEADS), "t5"])
def test_equals_transformers(make_model: MakeModel, family: str) -> None:
    folder = make_model(family, auto=AutoModelForTokenClassification, num_labels=5)
    model = loaded(folder)
    rows = rows_of()
    want = stock_logits(AutoModelForTokenClassification, folder, rows)
    got = run(model, rows)["logits"]
    assert got.signature == ("f32", (-1, 5))
    for mixed, alone in zip(got.rows(), want, strict=True):
        np.testing.assert_allclose(mixed, alone, atol=1e-5, rtol=1e-5)


def test_describe(make_model: MakeModel) -> None:
    names = {0: "O", 1: "B-PER"}
    folder = make_model(
        "bert", auto=AutoModelForTokenClassification, id2label=names, label2id={"O": 0, "B-PER": 1}
    )
    info = facts(loaded(folder))
    assert (info.kind, info.labels, info.activation) == ("token_classifier", ("O", "B-PER"), "softmax")


def test_a_head_that_mixes_tokens_does_not_start(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("bert", auto=AutoModelForTokenClassification, num_labels=5)
    real = StockHead.__call__

    def mixes(self: StockHead, hidden: torch.Tensor) -> torch.Tensor:
        return real(self, hidden + hidden.mean(1, keepdim=True))

    monkeypatch.setattr(StockHead, "__call__", mixes)
    with pytest.raises(EngineStartFailed, match="head"):
        loaded(folder)
