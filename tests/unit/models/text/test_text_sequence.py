"""Rerankers and classifiers of every family against Transformers and sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import with_heads
from heads import CPU, facts, loaded, rows_of, run, stock_logits, types_of
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from test_text_forward import Recorder
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as HEADS

from gpu_server.errors import ConfigError, InvalidRequest
from gpu_server.models.text import encoder
from gpu_server.models.text.graphs import Staged
from gpu_server.models.text.model import TextBatch, TextModel
from gpu_server.models.text.sequence import SequenceModel
from gpu_server.models.text.stock_head import StockHead
from gpu_server.scores import activate
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import Tensor

MakeModel = Callable[..., Path]
PAIRS = [("w1 w2", "w3 w4 w5"), ("w9", "w8"), ("w1 " * 90, "w2 " * 70), ("", "w7")]


def make(
    make_model: MakeModel, family: str, labels: int = 3, *, types: bool = True, **overrides: Any
) -> Path:
    """types: whether the tokenizer gives token types."""
    folder = make_model(family, auto=AutoModelForSequenceClassification, num_labels=labels, **overrides)
    path = folder / "tokenizer_config.json"
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "model_input_names": names, "model_max_length": 100}))
    return folder


def logits(model: TextModel, rows: Any, types: Any) -> Any:
    return run(model, rows, types)["logits"].to_numpy()


def assert_equal_to_stock(folder: Path, model: TextModel) -> None:
    rows = rows_of()
    types = types_of(rows) if "token_type_ids" in model.inputs else None
    want = np.stack(stock_logits(AutoModelForSequenceClassification, folder, rows, types))
    np.testing.assert_allclose(logits(model, rows, types), want, atol=1e-5, rtol=1e-5)
    alone = logits(model, rows[3:4], types and types[3:4])
    np.testing.assert_allclose(alone, want[3:4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", with_heads(HEADS))
def test_every_family_equals_transformers(make_model: MakeModel, family: str) -> None:
    folder = make(make_model, family)
    model = loaded(folder)
    assert isinstance(model, SequenceModel)
    assert (model._reads == "whole") == (family == "longformer")
    assert_equal_to_stock(folder, model)


def test_a_head_that_overflows_is_tried_in_another_dtype(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(make_model, "bert", types=False)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    on_a_gpu = encoder.dtypes("auto", "float32", torch.device("cuda"))
    monkeypatch.setattr(encoder, "dtypes", lambda *given: on_a_gpu)
    assert facts(loaded(folder)).dtype == "bfloat16"


def test_a_head_that_averages_gets_all_tokens(make_model: MakeModel) -> None:
    folder = make(make_model, "modernbert", classifier_pooling="mean")
    model = loaded(folder)
    assert isinstance(model, SequenceModel)
    assert model._reads == "all"
    assert_equal_to_stock(folder, model)


def test_a_head_that_cannot_be_fed_runs_whole(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: object) -> None:
        raise TypeError("no inputs_embeds")

    folder = make(make_model, "bert")
    monkeypatch.setattr(StockHead, "__call__", refuses)
    model = loaded(folder)
    assert model.padded
    assert facts(model).runs == "padded"
    assert_equal_to_stock(folder, model)


@pytest.mark.parametrize(
    ("family", "config"),
    [("bert", {}), ("modernbert", {"classifier_pooling": "mean", "local_attention": 256})],
)
def test_graphs_give_the_same(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, family: str, config: dict[str, Any]
) -> None:
    Recorder(monkeypatch)
    model = loaded(make(make_model, family, **config))
    rows = rows_of([7, 30, 1])
    types = types_of(rows)
    direct = logits(model, rows, types)
    model._forward.capture(
        max_tokens=100, max_items=50, max_length=40, compiled=False, fused=False, progress=lambda done: None
    )
    staged = model.collate(
        {name: Tensor.from_rows(values) for name, values in zip(model.inputs, (rows, types), strict=False)},
        CPU,
    )
    assert isinstance(staged, TextBatch)
    assert isinstance(staged.packed, Staged)
    np.testing.assert_allclose(logits(model, rows, types), direct, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad", [None, 0])
def test_a_decoder_with_or_without_padding_token(make_model: MakeModel, pad: int | None) -> None:
    folder = make(make_model, "qwen3", pad_token_id=pad)
    assert_equal_to_stock(folder, loaded(folder))


def test_the_last_token_may_be_padding(make_model: MakeModel) -> None:
    """Transformers then takes the token before it, and so must we."""
    folder = make(make_model, "qwen3", pad_token_id=2)
    assert_equal_to_stock(folder, loaded(folder))
    rows = [np.append(row, np.int32(2)) for row in rows_of([5, 1, 8])]
    want = np.stack(stock_logits(AutoModelForSequenceClassification, folder, rows))
    np.testing.assert_allclose(logits(loaded(folder), rows, None), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "config", "kind", "activation"),
    [
        (1, {}, "reranker", "sigmoid"),
        (3, {}, "classifier", "softmax"),
        (3, {"problem_type": "multi_label_classification"}, "classifier", "sigmoid"),
        (3, {"problem_type": "single_label_classification"}, "classifier", "softmax"),
        (3, {"problem_type": "regression"}, "classifier", "identity"),
        (1, {"problem_type": "regression"}, "reranker", "sigmoid"),
        (1, {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "reranker", "identity"),
        (2, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "classifier", "identity"),
    ],
)  # fmt: skip
def test_kind_and_activation(
    make_model: MakeModel, labels: int, config: dict[str, Any], kind: str, activation: str
) -> None:
    info = facts(loaded(make(make_model, "bert", labels, **config)))
    assert (info.kind, info.activation, len(info.labels)) == (kind, activation, labels)


def test_labels_are_the_configs(make_model: MakeModel) -> None:
    names = {0: "sad", 1: "glad"}
    info = facts(loaded(make(make_model, "bert", 2, id2label=names, label2id={"sad": 0, "glad": 1})))
    assert info.labels == ("sad", "glad")


@pytest.mark.parametrize(
    ("family", "labels"), [("bert", 1), ("bert", 3), ("roberta", 1), ("distilbert", 1), ("modernbert", 2)]
)
def test_pairs_equal_a_saved_cross_encoder(
    make_model: MakeModel, tmp_path: Path, family: str, labels: int
) -> None:
    folder = make(make_model, family, labels, types=family == "bert", pad_token_id=0)
    theirs = CrossEncoder(str(folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    model = loaded(tmp_path / "saved")
    info = facts(model)
    assert info.text is not None
    tokenizer = TextTokenizer(model.tokenizer_json(), info.text)
    rows = tokenizer.encode_pairs(PAIRS)
    ids, types = ([np.array(column, np.int32) for column in columns] for columns in zip(*rows, strict=True))
    got = activate(logits(model, ids, types), info.activation)
    want = theirs.predict(PAIRS, convert_to_numpy=True).reshape(len(PAIRS), labels)
    assert info.activation == ("sigmoid" if labels == 1 else "identity")
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_that_gives_no_types(make_model: MakeModel) -> None:
    folder = make(make_model, "bert", types=False)
    model = loaded(folder)
    assert list(model.inputs) == ["input_ids"]
    assert_equal_to_stock(folder, model)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([[0, 1], [0, 0, 1]], "input 1 has not one token type a token"),
        ([[0, 1], [0, 2]], "input 1 has a token type outside 0 … 1"),
        ([[0, -1], [0, 1]], "input 0 has a token type outside 0 … 1"),
    ],
)
def test_bad_types_are_refused_before_the_device(
    make_model: MakeModel, types: list[list[int]], message: str
) -> None:
    model = loaded(make(make_model, "bert"))
    inputs = {"input_ids": Tensor.from_rows([[5, 6], [7, 8]]), "token_type_ids": Tensor.from_rows(types)}
    with pytest.raises(InvalidRequest, match=message):
        model.collate(inputs, CPU)


def test_an_unknown_activation_is_refused(make_model: MakeModel) -> None:
    folder = make(make_model, "bert", 1, sentence_transformers={"activation_fn": "my.own.Swish"})
    with pytest.raises(ConfigError, match=r"activation my\.own\.Swish"):
        loaded(folder)


def test_pooling_makes_an_embedding_model_of_a_classifier(make_model: MakeModel) -> None:
    assert facts(loaded(make(make_model, "bert"), pooling="cls")).kind == "embedding"


def test_a_template_that_ends_with_padding_is_seen(make_model: MakeModel) -> None:
    folder = make(make_model, "qwen3")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A [PAD]", special_tokens=[("[PAD]", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    model = loaded(folder)
    assert isinstance(model, SequenceModel)
    assert model._reads == "all"
    rows = [np.append(row, np.int32(0)) for row in rows_of([5, 1, 8])]
    want = np.stack(stock_logits(AutoModelForSequenceClassification, folder, rows))
    np.testing.assert_allclose(logits(model, rows, None), want, atol=1e-5, rtol=1e-5)
