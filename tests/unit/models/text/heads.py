"""Running text models as the engine does, and stock models one item at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from gpu_server.engine import outputs
from gpu_server.models.text.choice import choose
from gpu_server.models.text.model import TextModel
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.documents import ModelInfo

CPU = torch.device("cpu")
LENGTHS = [3, 40, 1, 17, 3, 64, 9]
Row = NDArray[np.int32]


def loaded(folder: Path, **options: Any) -> TextModel:
    """The model that the engine would make of a folder."""
    model = choose(str(folder), **options)
    model.load(CPU)
    return model


def facts(model: TextModel) -> ModelInfo:
    info = ModelInfo(name="m")
    model.describe(info)
    return info


def rows_of(lengths: list[int] = LENGTHS, low: int = 4, high: int = 96, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [rng.integers(low, high, n, dtype=np.int32) for n in lengths]


def types_of(rows: list[Row], seed: int = 1) -> list[Row]:
    return rows_of([len(row) for row in rows], 0, 2, seed)


def run(model: TextModel, rows: list[Row], types: list[Row] | None = None, **params: Any) -> Tensors:
    """A batch's wire outputs."""
    inputs = {"input_ids": Tensor.from_rows(rows)}
    if "token_type_ids" in model.inputs:
        assert types is not None
        inputs["token_type_ids"] = Tensor.from_rows(types)
    with torch.inference_mode():
        made = model.split(model.forward(model.collate(inputs, CPU), **params), len(rows))
        wire, errors = outputs.finish(outputs.stage(made), len(rows), True)
    assert errors == []
    return wire


@torch.inference_mode()
def stock_logits(
    auto: Any, folder: Path, rows: list[Row], types: list[Row] | None = None
) -> list[NDArray[np.float32]]:
    """Logits of Transformers' own model, one item at a time."""
    model = auto.from_pretrained(folder).eval()
    logits = []
    for i, row in enumerate(rows):
        given = {"input_ids": torch.from_numpy(row)[None].long()}
        if types is not None:
            given["token_type_ids"] = torch.from_numpy(types[i])[None].long()
        logits.append(model(**given).logits[0].numpy())
    return logits


def pairs(make_model: Callable[..., Path], family: str, **config: Any) -> Path:
    """A classifier whose tokenizer gives token types."""
    folder = make_model(family, auto=AutoModelForSequenceClassification, **config)
    path = folder / "tokenizer_config.json"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": names}))
    return folder


def bge_m3(make_model: Callable[..., Path]) -> Path:
    """An embedding model with BGE-M3's two more heads."""
    folder = make_model("xlm-roberta", pooling="cls", normalize=True, pad_token_id=0)
    torch.manual_seed(1)
    for part, size in (("sparse", 1), ("colbert", 16)):
        weights = {"weight": torch.randn(size, 32) / 6, "bias": torch.randn(size)}
        torch.save(weights, folder / f"{part}_linear.pt")
    return folder
