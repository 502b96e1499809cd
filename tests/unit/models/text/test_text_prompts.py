"""Prompts that are left out of the pooling, against sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import CPU, facts, loaded
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from gpu_server.errors import InvalidRequest
from gpu_server.models.text.embedding import EmbeddingModel
from gpu_server.models.text.model import TextModel
from gpu_server.models.text.pooling import pool, pool_after
from gpu_server.tokenizing import TextTokenizer, prompt_params

MakeModel = Callable[..., Path]
TEXTS = ["w1 w2 w3", "w9", "", "w4 " * 120, "w5 w6 w7 w8 w9 w10"]
PROMPTS = {"query": "w20 w21 w22 ", "odd": "w30 [SEP]", "none": ""}
POOLINGS = ["cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"]


def saved(folder: Path, pooling: str | list[str], template: str = "[CLS] $A [SEP]") -> Path:
    """A folder that pools without its prompts, of which `query` is the default."""
    edit(folder / "1_Pooling" / "config.json", pooling_mode=pooling, include_prompt=False)
    edit(
        folder / "config_sentence_transformers.json",
        prompts=PROMPTS,
        default_prompt_name="query",
        similarity_fn_name="cosine",
    )
    edit(folder / "tokenizer_config.json", cls_token="[CLS]", sep_token="[SEP]")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(path))
    return folder


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**value, **changes}))


@torch.inference_mode()
def ours(model: TextModel, texts: list[str], prompt_name: str) -> np.ndarray:
    info = facts(model)
    assert info.text is not None
    tokenizer = TextTokenizer(model.tokenizer_json(), info.text)
    batch = model.collate(tokenizer.inputs(texts, prompt_name=prompt_name), CPU)
    vectors: torch.Tensor = model.forward(batch, **prompt_params(info.text, prompt_name))["embedding"]
    return vectors.numpy()


def assert_equal_to_theirs(folder: Path, texts: list[str], **options: Any) -> None:
    model = loaded(folder, dtype="float32", **options)
    theirs = SentenceTransformer(str(folder), device="cpu")
    for name in PROMPTS:
        want = theirs.encode(texts, prompt_name=name)
        np.testing.assert_allclose(ours(model, texts, name), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", [*POOLINGS, ["mean", "cls"]])
def test_every_pooling_equals_sentence_transformers(make_model: MakeModel, pooling: str | list[str]) -> None:
    assert_equal_to_theirs(saved(make_model("bert", pooling="mean"), pooling), TEXTS)


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken", "weightedmean"])
def test_a_text_with_nothing_but_the_prompt(make_model: MakeModel, pooling: str) -> None:
    """Without a special token at the end, nothing is left of an empty text."""
    folder = saved(make_model("qwen3", pooling="mean"), pooling, template="[CLS] $A")
    assert_equal_to_theirs(folder, TEXTS)


def test_the_default_prompt_is_left_out_too(make_model: MakeModel) -> None:
    folder = saved(make_model("bert", pooling="mean", normalize=True), "mean")
    want = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours(loaded(folder, dtype="float32"), TEXTS, ""), want, atol=1e-5, rtol=1e-5)


def test_dense_modules_follow(make_model: MakeModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stock = SentenceTransformer(str(saved(make_model("bert", pooling="mean"), "mean")), device="cpu")
    made = SentenceTransformer(
        modules=[*stock, Dense(32, 16)], device="cpu", prompts=PROMPTS, default_prompt_name="query"
    )
    made.save_pretrained(str(tmp_path / "saved"))
    assert_equal_to_theirs(tmp_path / "saved", TEXTS)


def test_only_such_models_have_the_parameter(make_model: MakeModel) -> None:
    folder = make_model("bert", pooling="mean")
    assert "prompt_length" not in loaded(folder).params
    assert loaded(saved(folder, "mean")).params["prompt_length"] == 0


@pytest.mark.parametrize("length", [-1, True, 1.5])
def test_a_wrong_length_is_refused(make_model: MakeModel, length: Any) -> None:
    model = loaded(saved(make_model("bert", pooling="mean"), "mean"))
    info = facts(model)
    assert isinstance(model, EmbeddingModel)
    assert info.text is not None
    inputs = TextTokenizer(model.tokenizer_json(), info.text).inputs(["w1"])
    with pytest.raises(InvalidRequest, match="prompt_length must be"):
        model.forward(model.collate(inputs, CPU), prompt_length=length)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_leaving_nothing_out_is_pooling(pooling: str) -> None:
    hidden = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 3, 4, 9])
    torch.testing.assert_close(pool_after(hidden, offsets, pooling, 0), pool(hidden, offsets, pooling))
