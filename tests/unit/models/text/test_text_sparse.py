"""SPLADE against sentence-transformers' SparseEncoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import facts, loaded, rows_of, run
from sentence_transformers import SparseEncoder
from transformers import AutoModelForMaskedLM

from gpu_server.errors import ConfigError
from gpu_server.models.text import sparse
from gpu_server.wire import Tensors

MakeModel = Callable[..., Path]


def saved(make_model: MakeModel, folder: Path, family: str = "bert", **pooling: str) -> Path:
    """A folder that sentence-transformers saved."""
    encoder = SparseEncoder(str(make_model(family, auto=AutoModelForMaskedLM)), device="cpu")
    encoder.save_pretrained(str(folder / "saved"))
    path = folder / "saved" / "1_SpladePooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **pooling}))
    return folder / "saved"


def dense(outputs: Tensors) -> Any:
    made = np.zeros((outputs["sparse_indices"].items, 96), np.float32)
    rows = zip(outputs["sparse_indices"].rows(), outputs["sparse_values"].rows(), strict=True)
    for i, (indices, values) in enumerate(rows):
        assert (np.diff(indices) > 0).all()
        assert (values != 0).all()
        made[i, indices] = values
    return made


@torch.inference_mode()
def theirs(folder: Path, rows: list[Any]) -> Any:
    encoder = SparseEncoder(str(folder), device="cpu")
    made = []
    for row in rows:
        ids = torch.from_numpy(row)[None].long()
        out = encoder({"input_ids": ids, "attention_mask": torch.ones_like(ids), "modality": "text"})
        made.append(out["sentence_embedding"][0].numpy())
    return np.stack(made)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", {}),
        ("bert", {"activation_function": "log1p_relu"}),
        ("bert", {"pooling_strategy": "sum"}),
        ("distilbert", {"pooling_strategy": "sum", "activation_function": "log1p_relu"}),
        ("layoutlm", {}),
        ("longformer", {}),
        ("modernbert", {}),
        ("mpnet", {}),
    ],
)
def test_equals_sentence_transformers(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    pooling: dict[str, str],
) -> None:
    monkeypatch.setattr(sparse, "_CHUNK_NUMBERS", 7 * 96)
    folder = saved(make_model, tmp_path, family, **pooling)
    model = loaded(folder)
    rows = rows_of()
    want = theirs(folder, rows)
    np.testing.assert_allclose(dense(run(model, rows)), want, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(dense(run(model, rows[1:2])), want[1:2], atol=1e-5, rtol=1e-5)
    info = facts(model)
    assert (info.kind, info.dimensions, info.pooling) == ("sparse", 96, "splade")


def test_a_plain_folder_needs_the_setting(make_model: MakeModel) -> None:
    folder = make_model("bert", auto=AutoModelForMaskedLM)
    assert facts(loaded(folder)).kind == "embedding"
    assert facts(loaded(folder, pooling="splade")).kind == "sparse"


@pytest.mark.parametrize("pooling", [{"pooling_strategy": "mean"}, {"activation_function": "elu"}])
def test_other_poolings_are_refused(make_model: MakeModel, tmp_path: Path, pooling: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="SpladePooling"):
        loaded(saved(make_model, tmp_path, **pooling))
