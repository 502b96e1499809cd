"""Padding tokens that stand in a text itself, against Transformers one item at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import CPU, Row, loaded, run, stock_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text_forward import Recorder, capture, forward_of
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from gpu_server.models.text.batch import Batch, pack
from gpu_server.models.text.graphs import Staged
from gpu_server.models.text.sequence import SequenceModel
from gpu_server.wire import Tensor

MakeModel = Callable[..., Path]
PAD = {"camembert": 3, "roberta": 1, "xlm-roberta": 1, "mpnet": 1, "bert": 0}


def rows_with(pad: int) -> list[Row]:
    texts = [[5, 6, 7, pad, 8, 9, 2], [9, 8, 7], [pad, 4, pad, pad, 5], [4, 5, pad], [pad]]
    return [np.array(text, np.int32) for text in texts]


@torch.inference_mode()
def stock_means(folder: Path, rows: list[Row]) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    ids = [torch.from_numpy(row)[None].long() for row in rows]
    masks = [torch.ones_like(one) for one in ids]
    outs = [model(input_ids=one, attention_mask=mask) for one, mask in zip(ids, masks, strict=True)]
    return torch.stack([out.last_hidden_state[0].mean(0) for out in outs])


@settings(max_examples=50)
@given(rows=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=6))
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_positions_are_those_of_transformers(pad: int, rows: list[list[int]]) -> None:
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    batch = pack(ids, np.array([len(row) for row in rows]), CPU, pad + 1)
    theirs: Any = RobertaEmbeddings.create_position_ids_from_input_ids
    assert batch.positions.tolist() == [
        n for row in rows for n in theirs(torch.tensor([row]), pad)[0].tolist()
    ]


@pytest.mark.parametrize("family", PAD)
def test_a_text_may_hold_the_padding_token(make_model: MakeModel, family: str) -> None:
    folder = make_model(family, pooling="mean")
    rows = rows_with(PAD[family])
    got = torch.from_numpy(run(loaded(folder, dtype="float32"), rows)["embedding"].to_numpy())
    torch.testing.assert_close(got, stock_means(folder, rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_beside_graphs_too(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    folder = make_model(family)
    Recorder(monkeypatch)
    forward = forward_of(folder)
    capture(forward)
    for rows, may_stage in ((rows_with(PAD[family]), family == "bert"), (rows_with(9), True)):
        packed = forward.pack(np.concatenate(rows), np.array([len(row) for row in rows]))
        assert isinstance(packed, Staged if may_stage else Batch)
        with torch.inference_mode():
            got = forward(packed).pooled[0]
        torch.testing.assert_close(got, stock_means(folder, rows), atol=1e-5, rtol=1e-5)


def scorer(make_model: MakeModel, **config: Any) -> tuple[Path, SequenceModel]:
    folder = make_model(
        "qwen3",
        auto=AutoModelForSequenceClassification,
        num_labels=2,
        pad_token_id=4,
        **config,
    )
    model = loaded(folder, dtype="float32")
    assert isinstance(model, SequenceModel)
    assert model._reads == "last"
    return folder, model


ENDINGS: list[Row] = [
    np.array(text, np.int32) for text in ([1, 5, 6, 7, 4], [1, 5, 6, 7, 9], [1, 4, 6], [4, 4], [1, 8, 4, 4])
]


def stock_of_endings(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.stack(stock_logits(AutoModelForSequenceClassification, folder, ENDINGS)))


def test_a_head_that_reads_the_last_token_passes_over_padding(make_model: MakeModel) -> None:
    folder, model = scorer(make_model)
    got = torch.from_numpy(run(model, ENDINGS)["logits"].to_numpy())
    torch.testing.assert_close(got, stock_of_endings(folder), atol=1e-5, rtol=1e-5)


def test_such_a_head_behind_graphs(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = scorer(make_model, num_key_value_heads=4, is_causal=False)
    want = stock_of_endings(folder)
    Recorder(monkeypatch)
    capture(model._forward)
    batch = model.collate({"input_ids": Tensor.from_rows(ENDINGS)}, CPU)
    assert isinstance(batch.packed, Staged)
    with torch.inference_mode():
        got = model.forward(batch)["logits"]
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
