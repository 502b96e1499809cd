"""Tiny random models, saved as Transformers and sentence-transformers save real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging

VOCAB = 96
MakeModel = Callable[..., Path]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@pytest.fixture(scope="session", autouse=True)
def _silent() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Save a tiny random model of a family with a tokenizer, and sentence-transformers modules if pooling is given.

    auto: the auto class of Transformers to make it with.
    """

    def make(
        family: str, pooling: str = "", normalize: bool = False, auto: Any = AutoModel, **overrides: Any
    ) -> Path:
        if family not in CONFIG_MAPPING:
            pytest.skip(f"this Transformers has no {family}")
        settings = {**_COMMON, **FAMILIES.get(family, {}), **overrides}
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(family, **settings))
        for parameter in model.parameters():
            # Larger than any real initialiser: what a token attends to must show in the result.
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.25)
        model.save_pretrained(tmp_path)
        _tokenizer().save(str(tmp_path / "tokenizer.json"))
        write(
            tmp_path / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "pad_token": "[PAD]"}
        )
        if pooling:
            _write_modules(tmp_path, pooling, normalize)
        return tmp_path

    return make


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def _tokenizer() -> Tokenizer:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(VOCAB - 4))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def _write_modules(folder: Path, pooling: str, normalize: bool) -> None:
    kinds = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        *([("Normalize", "2_Normalize")] if normalize else []),
    ]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ],
    )
    keys = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken", "max": "max_tokens"}
    modes = {f"pooling_mode_{key}": mode == pooling for mode, key in keys.items()}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 100, "do_lower_case": False})
