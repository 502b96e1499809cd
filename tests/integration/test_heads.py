"""A real daemon that serves a reranker and a sparse model: ids from the client, texts from anybody."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running_daemon import RunningDaemon
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from gpu_server.client import Client
from gpu_server.testing import byte_tokenizer

pytestmark = pytest.mark.slow

QUERY = "where is the cat"
DOCUMENTS = ["on the mat", "", "ünïcödé", "long " * 60]
MAX_LENGTH = 100


def save(folder: Path, auto: Any, **settings: Any) -> Path:
    """A tiny random BERT, with the tokenizer whose tokens are bytes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=MAX_LENGTH, initializer_range=0.3, **settings,
    )  # fmt: skip
    auto.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(byte_tokenizer())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", "model_input_names": names})
    )
    return folder


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gs-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    reranker = save(folder / "reranker", AutoModelForSequenceClassification, num_labels=1)
    splade = save(folder / "splade", AutoModelForMaskedLM)
    pooling = {
        "type": "sentence_transformers.sparse_encoder.modules.SpladePooling",
        "path": "1_SpladePooling",
    }
    transformer = {"type": "sentence_transformers.base.modules.Transformer", "path": ""}
    (splade / "modules.json").write_text(json.dumps([transformer, pooling]))
    (splade / "1_SpladePooling").mkdir()
    (splade / "1_SpladePooling" / "config.json").write_text("{}")
    running = RunningDaemon(f"ipc://{folder}/s", str(reranker), str(splade))
    try:
        yield running.wait_ready().client
    finally:
        running.kill()


@torch.inference_mode()
def stock(auto: Any, folder: Path, *texts: str) -> torch.Tensor:
    tokenizer = Tokenizer.from_str(byte_tokenizer().decode())
    tokenizer.enable_truncation(MAX_LENGTH)
    encoding = tokenizer.encode(*texts)
    model = auto.from_pretrained(folder).eval()
    logits: torch.Tensor = model(
        input_ids=torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids])
    ).logits[0]
    return logits


def test_the_models_say_what_they_are(client: Client) -> None:
    reranker, splade = client.models()
    assert (reranker.kind, reranker.labels, reranker.activation) == ("reranker", ("LABEL_0",), "sigmoid")
    assert [i.name for i in reranker.inputs] == ["input_ids", "token_type_ids"]
    assert (splade.kind, splade.dimensions) == ("sparse", 258)


def test_rerank(client: Client, folder: Path) -> None:
    logits = [
        float(stock(AutoModelForSequenceClassification, folder / "reranker", QUERY, document))
        for document in DOCUMENTS
    ]
    raw = client.rerank(QUERY, DOCUMENTS, raw_scores=True)
    np.testing.assert_allclose(raw, logits, atol=1e-5, rtol=1e-5)
    scores = client.rerank(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(logits))), atol=1e-5, rtol=1e-5)


def test_texts_are_tokenised_by_the_daemon_too(client: Client) -> None:
    texts = {"text": [QUERY] * len(DOCUMENTS), "text_pair": DOCUMENTS}
    reply = client.infer_request("reranker", texts)
    np.testing.assert_array_equal(
        reply.outputs["logits"].to_numpy()[:, 0], client.rerank(QUERY, DOCUMENTS, raw_scores=True)
    )


def test_sparse_vectors(client: Client, folder: Path) -> None:
    for text, vector in zip(DOCUMENTS, client.embed_sparse(DOCUMENTS, model="splade"), strict=True):
        logits = stock(AutoModelForMaskedLM, folder / "splade", text)
        want = logits.relu().log1p().amax(0).numpy()
        assert vector.indices.tolist() == np.flatnonzero(want).tolist()
        np.testing.assert_allclose(vector.values, want[vector.indices], atol=1e-5, rtol=1e-5)
