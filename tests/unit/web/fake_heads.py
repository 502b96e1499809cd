"""Models with heads for a FakeServer: what they answer can be worked out from the bytes of the texts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gpu_server.testing import FakeModel, byte_tokenizer
from gpu_server.tokenizing import digest
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.documents import Activation, InputInfo, Kind, ModelInfo, TextInfo

MAX_LENGTH = 64


def pair_tokenizer() -> bytes:
    """The byte tokenizer with a second text of its own type after the first."""
    made = json.loads(byte_tokenizer())
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    made["post_processor"]["pair"] = made["post_processor"]["single"] + second
    return json.dumps(made).encode()


def head(
    name: str, kind: Kind, answer: Any, *, labels: tuple[str, ...] = (), activation: Activation = ""
) -> FakeModel:
    """A model whose `answer` maps its inputs to outputs."""
    tokenizer = pair_tokenizer()
    text = TextInfo(digest=digest(tokenizer), max_length=MAX_LENGTH, vocab_size=258)
    inputs = [InputInfo("input_ids", "i32", (-1,))]
    if kind in ("reranker", "classifier"):
        inputs.append(InputInfo("token_type_ids", "i32", (-1,)))
    info = ModelInfo(
        name=name, version="1", kind=kind, device="cpu", dtype="float32", inputs=tuple(inputs), cost="input_ids",
        text=text, labels=labels, activation=activation,
    )  # fmt: skip
    return FakeModel(info, lambda inputs, params: answer(inputs), tokenizer)


def second_lengths(inputs: Tensors) -> list[int]:
    """Tokens of each item's second text."""
    return [int(row.sum()) for row in inputs["token_type_ids"].rows()]


def reranker(name: str = "fake/reranker") -> FakeModel:
    """Its logit is the number of tokens of the second text, less 10, over 10."""
    return head(
        name, "reranker",
        lambda inputs: {"logits": np.array([[(n - 10) / 10] for n in second_lengths(inputs)], np.float32)},
        labels=("LABEL_0",), activation="sigmoid",
    )  # fmt: skip


def classifier(name: str = "fake/classifier") -> FakeModel:
    """Its logits are 0, 1 for a pair, and a tenth of the number of tokens."""

    def logits(inputs: Tensors) -> dict[str, Any]:
        pairs, lengths = second_lengths(inputs), inputs["input_ids"].lengths()
        rows = [[0, n > 0, length / 10] for n, length in zip(pairs, lengths, strict=True)]
        return {"logits": np.array(rows, np.float32)}

    return head(name, "classifier", logits, labels=("none", "pair", "long"), activation="softmax")


def token_classifier(name: str = "fake/ner") -> FakeModel:
    """Capital letters begin a name, small ones go on with it, all else is nothing."""

    def logits(inputs: Tensors) -> dict[str, Any]:
        rows = [[[0, 9, 0] if 65 <= i <= 90 else [0, 0, 9] if 97 <= i <= 122 else [9, 0, 0] for i in row]
                for row in inputs["input_ids"].rows()]  # fmt: skip
        return {"logits": Tensor.from_rows([np.array(row, np.float32) for row in rows], "f32")}

    return head(name, "token_classifier", logits, labels=("O", "B-NAME", "I-NAME"))


def sparse(name: str = "fake/sparse") -> FakeModel:
    """The distinct token ids with a tenth of how often each occurs."""

    def vectors(inputs: Tensors) -> dict[str, Any]:
        found = [np.unique(row, return_counts=True) for row in inputs["input_ids"].rows()]
        return {
            "sparse_indices": Tensor.from_rows([ids.astype("<i4") for ids, _ in found], "i32"),
            "sparse_values": Tensor.from_rows([(n / 10).astype("<f4") for _, n in found], "f32"),
        }

    return head(name, "sparse", vectors)
