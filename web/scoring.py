"""Texts and pairs to the scores of a classifier, a reranker or a token classifier."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpu_server.connection import Reply
from gpu_server.scores import Scores, activate
from gpu_server.tokenizing import Direction, Text, TextTokenizer
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.inputs import cut_characters
from web.measures import Measures

if TYPE_CHECKING:
    from tokenizers import Encoding

CLASSIFIERS = ("classifier", "reranker")
RERANKERS = ("reranker",)
_WHAT = {CLASSIFIERS: "a classifier or reranker", RERANKERS: "a reranker"}


@dataclass(slots=True)
class ScoreJob:
    """Texts or pairs of a body's `field`, for the first model of `kinds` or the one named."""

    texts: Sequence[Text]
    field: str
    kinds: tuple[str, ...]
    model: str = ""
    raw_scores: bool = False
    truncate: bool = True
    direction: Direction = "right"


def score(backend: Backend, job: ScoreJob) -> tuple[Scores, ModelInfo, Measures]:
    """Scores, float32 `[texts, labels]`, their model and what it took. An item that fails alone fails the job."""

    def pick() -> ModelInfo:
        return backend.model_of_kind(job.model, job.kinds, _WHAT[job.kinds])

    replies, info, measures = _send(backend, job, pick)
    logits = [reply.outputs["logits"].to_numpy() for reply in replies]
    activation = "identity" if job.raw_scores else info.activation
    return activate(np.concatenate(logits), activation), info, measures


def label_tokens(
    backend: Backend, job: ScoreJob
) -> tuple[list[tuple[Encoding, Scores]], ModelInfo, Measures]:
    """Each text's tokens, and their scores as float32 `[tokens, labels]`."""

    def pick() -> ModelInfo:
        return backend.model_of_kind(job.model, ("token_classifier",), "a token classifier")

    replies, info, measures = _send(backend, job, pick)
    rows = [row for reply in replies for row in reply.outputs["logits"].rows()]
    encodings = backend.with_tokenizer(
        lambda: info,
        lambda _, tokenizer: tokenizer.tokenize(
            [text for text in job.texts if isinstance(text, str)],
            truncate=job.truncate,
            direction=job.direction,
        ),
    )
    return (
        [(e, activate(row, "softmax")) for e, row in zip(encodings, rows, strict=True)],
        info,
        measures,
    )


def _send(
    backend: Backend, job: ScoreJob, pick: Callable[[], ModelInfo]
) -> tuple[list[Reply], ModelInfo, Measures]:
    backend.check_batch(len(job.texts), job.field)
    measures = Measures()
    measures.characters = sum(len(t) if isinstance(t, str) else len(t[0]) + len(t[1]) for t in job.texts)

    def work(info: ModelInfo, tokenizer: TextTokenizer) -> tuple[list[Reply], ModelInfo, Measures]:
        begun = time.monotonic()
        inputs = tokenizer.inputs(
            [
                cut_characters(i, text, tokenizer, job.truncate, job.direction)
                for i, text in enumerate(job.texts)
            ],
            typed=any(declared.name == "token_type_ids" for declared in info.inputs),
            truncate=job.truncate,
            direction=job.direction,
        )
        measures.tokenize_s = time.monotonic() - begun
        backend.tokenized(info.name, measures.tokenize_s)
        measures.tokens = sum(inputs["input_ids"].lengths())
        backend.check_tokens(measures.tokens, job.field)
        replies = backend.send_parts(inputs, info, digest=tokenizer.info.digest)
        measures.add(replies)
        return replies, info, measures

    return backend.with_tokenizer(pick, work)
