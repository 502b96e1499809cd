"""Token types of single texts, against sentence-transformers and Transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import facts, loaded, run, stock_logits
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from gpu_server.errors import ConfigError
from gpu_server.models.text.token_types import TextTypes
from gpu_server.tokenizing import TextTokenizer

MakeModel = Callable[..., Path]
TEXTS = ["w1 w2 w3", "", "w4", "w5 w6 w7 w8 w9 " * 9]
SPECIAL = [("[CLS]", 1), ("[SEP]", 2)]
XLNET = "$A:0 [SEP]:0 [CLS]:2"
ONES = "[CLS] $A:1 [SEP]:1"


def set_template(folder: Path, single: str, names: list[str]) -> Path:
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    template = TemplateProcessing(single=single, special_tokens=SPECIAL)  # type: ignore[call-arg]
    tokenizer.post_processor = Sequence([template])  # type: ignore[assignment]
    tokenizer.save(path)
    own = {"tokenizer_class": "TokenizersBackend", "pad_token": "[PAD]", "model_input_names": names}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    return folder


def with_types(folder: Path, single: str) -> Path:
    return set_template(folder, single, ["input_ids", "token_type_ids", "attention_mask"])


def embedded(folder: Path) -> Any:
    model = loaded(folder, dtype="float32")
    text = facts(model).text
    assert text is not None
    ids = TextTokenizer(model.tokenizer_json(), text).encode(TEXTS)
    return run(model, [np.array(row, np.int32) for row in ids])["embedding"].to_numpy()


def assert_equal_to_stock(folder: Path) -> None:
    want = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(embedded(folder), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("single", [ONES, "[CLS]:1 $A:0 [SEP]:1"])
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_template_of_other_types_equals_sentence_transformers(
    make_model: MakeModel, family: str, single: str
) -> None:
    assert_equal_to_stock(with_types(make_model(family), single))


def test_xlnet_equals_sentence_transformers(make_model: MakeModel) -> None:
    folder = with_types(make_model("bert"), XLNET)
    config = AutoConfig.for_model(
        "xlnet", vocab_size=96, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=0
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    assert_equal_to_stock(folder)


def test_a_tokenizer_that_gives_none_is_believed(make_model: MakeModel) -> None:
    assert_equal_to_stock(set_template(make_model("bert"), ONES, ["input_ids", "attention_mask"]))


def test_a_token_classifier_gets_them(make_model: MakeModel) -> None:
    folder = with_types(make_model("bert", auto=AutoModelForTokenClassification, num_labels=3), ONES)
    rows = [np.array([1, 5, 6, 2], np.int32), np.array([1, 2], np.int32)]
    types = [np.array([0, 1, 1, 1], np.int32), np.array([0, 1], np.int32)]
    want = stock_logits(AutoModelForTokenClassification, folder, rows, types)
    got = run(loaded(folder), rows)["logits"]
    for mixed, alone in zip(got.rows(), want, strict=True):
        np.testing.assert_allclose(mixed, alone, atol=1e-5, rtol=1e-5)


def test_types_that_the_model_has_not_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="token type 2, of which the model has 2"):
        loaded(with_types(make_model("bert"), XLNET))


def test_texts_shorter_than_their_special_tokens() -> None:
    got = TextTypes([3, 4], 5, [6]).of(np.array([1, 2, 5]))
    assert got.tolist() == [6, 3, 6, 3, 4, 5, 5, 6]
