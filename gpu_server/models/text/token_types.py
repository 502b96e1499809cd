"""Token types: whether a model's tokenizer gives them, and which a single text gets where they are not all 0."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from gpu_server.errors import ConfigError
from gpu_server.models.text.encoder import Encoder, quiet
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire.documents import TextInfo


class TextTypes(NamedTuple):
    """The type of a text's own tokens, and those of the special tokens before and behind them."""

    before: list[int]
    own: int
    after: list[int]

    def of(self, lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """Types of texts laid end to end, special tokens included."""
        types = np.full(int(lengths.sum()), self.own, np.int32)
        ends = np.cumsum(lengths)
        for place, kind in enumerate(self.before):
            types[(ends - lengths + place)[lengths > place]] = kind
        for place, kind in enumerate(reversed(self.after)):
            types[(ends - 1 - place)[lengths > place]] = kind
        return types


def given(folder: Path) -> bool:
    """Whether the tokenizer, as Transformers makes it of the folder, gives types: by its class, or as it was saved."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):
        return True
    return "token_type_ids" in tokenizer.model_input_names


def of_texts(folder: Path, tokenizer_json: bytes, encoder: Encoder) -> TextTypes | None:
    """What a single text must be given; None where it is 0 throughout, or the model or its tokenizer knows no types.

    Raises ConfigError on types that the model has not.
    """
    if not _says_other_than_0(json.loads(tokenizer_json).get("post_processor")):
        return None
    if "token_type_ids" not in inspect.signature(encoder.model.forward).parameters or not given(folder):
        return None
    (sample,) = TextTokenizer(tokenizer_json, TextInfo(digest="", max_length=0, vocab_size=0)).tokenize(["a"])
    owners, types = sample.sequence_ids, sample.type_ids
    if 0 not in owners:
        return None
    start, stop = owners.index(0), len(owners) - owners[::-1].index(0)
    if encoder.token_types and max(types) >= encoder.token_types:
        raise ConfigError(
            f"{folder}: the tokenizer gives a text token type {max(types)}, of which the model has {encoder.token_types}"
        )
    return TextTypes(types[:start], types[start], types[stop:])


def _says_other_than_0(post_processor: Any) -> bool:
    """Whether a template for a single text, among the post-processors, has a token type other than 0."""
    if not isinstance(post_processor, dict):
        return False
    if any(_says_other_than_0(part) for part in post_processor.get("processors") or []):
        return True
    return re.search(r'"type_id": [1-9]', json.dumps(post_processor.get("single"))) is not None
