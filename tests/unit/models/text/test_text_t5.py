"""Encoders of T5 and its kin against sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import facts, loaded, rows_of, run, stock_logits
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    MT5EncoderModel,
    T5EncoderModel,
    UMT5EncoderModel,
)

T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip


class _AsMade:
    """Makes models of one class, as an auto class makes them of a config's."""

    def __init__(self, kind: Any) -> None:
        self.from_config = kind


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("t5", T5EncoderModel),
        ("t5", None),
        ("mt5", MT5EncoderModel),
        ("mt5", None),
        ("umt5", UMT5EncoderModel),
        ("umt5", None),
    ],
)
def test_a_sentence_t5_equals_sentence_transformers(
    make_model: Callable[..., Path], tmp_path: Path, family: str, weights: Any
) -> None:
    """Of the encoder's weights alone, as it is saved, and of the whole model's."""
    plain = make_model(family, auto=_AsMade(weights) if weights else AutoModel, **T5)
    torch.manual_seed(1)
    modules = [
        Transformer(str(plain), max_seq_length=100),
        Pooling(32, "mean"),
        Dense(32, 24, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ]
    stock = SentenceTransformer(modules=modules, device="cpu")
    stock.save_pretrained(str(tmp_path / "saved"))
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / file).write_bytes((plain / file).read_bytes())
    stock = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    rows = rows_of()
    want = []
    for row in rows:
        ids = torch.from_numpy(row)[None].long()
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            want.append(stock(given)["sentence_embedding"][0].numpy())
    model = loaded(tmp_path / "saved", dtype="float32")
    got = run(model, rows)["embedding"].to_numpy()
    np.testing.assert_allclose(got, np.stack(want), atol=1e-5, rtol=1e-5)
    info = facts(model)
    assert (info.runs, info.dimensions) == ("padded", 24)


def test_how_many_positions_its_files_name_is_no_limit_of_distances(make_model: Callable[..., Path]) -> None:
    folder = make_model("t5", auto=_AsMade(T5EncoderModel), **T5, n_positions=512)
    (text,) = rows_of([700])
    want = T5EncoderModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        vector = want(input_ids=torch.from_numpy(text)[None].long()).last_hidden_state[0].mean(0)
    got = run(loaded(folder, dtype="float32", max_length=700, pooling="mean"), [text])["embedding"].to_numpy()
    np.testing.assert_allclose(got[0], vector.numpy(), atol=1e-5, rtol=1e-5)


def test_a_umt5_that_labels_tokens_is_no_encoder_decoder(make_model: Callable[..., Path]) -> None:
    """Its config.json goes on to say so, where those of its kin do not."""
    folder = make_model("umt5", auto=AutoModelForTokenClassification, num_labels=5, **T5)
    rows = rows_of()
    want = stock_logits(AutoModelForTokenClassification, folder, rows)
    got = run(loaded(folder), rows)["logits"]
    for mixed, alone in zip(got.rows(), want, strict=True):
        np.testing.assert_allclose(mixed, alone, atol=1e-5, rtol=1e-5)
