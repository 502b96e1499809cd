"""Texts and pairs to the scores of a classifier, a reranker or a token classifier."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gpu_server.connection import Reply
from gpu_server.errors import StaleTokenizer
from gpu_server.scores import Scores, activate
from gpu_server.tokenizing import Direction, Text, TextTokenizer
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.inputs import cut_characters
from web.measures import Measures
from web.unpinned import unpinned

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
    direction: Direction | None = None


@dataclass(slots=True)
class _Sent:
    """A job's replies, and what they answer: `texts` as `tokenizer` read them."""

    replies: list[Reply]
    info: ModelInfo
    measures: Measures
    texts: list[Text]
    tokenizer: TextTokenizer


def score(backend: Backend, job: ScoreJob) -> tuple[Scores, ModelInfo, Measures]:
    """Scores, float32 `[texts, labels]`, their model and what it took. An item that fails alone fails the job."""

    def pick() -> ModelInfo:
        return backend.model_of_kind(job.model, job.kinds, _WHAT[job.kinds])

    sent = _send(backend, job, pick)
    logits = [reply.outputs["logits"].to_numpy() for reply in sent.replies]
    activation = "identity" if job.raw_scores else sent.info.activation
    return activate(np.concatenate(logits), activation), sent.info, sent.measures


def label_tokens(
    backend: Backend, job: ScoreJob
) -> tuple[Iterator[tuple[Encoding, Scores]], ModelInfo, Measures]:
    """Each text's tokens, and their scores as float32 `[tokens, labels]`; made one by one, as tokens take much memory.

    Raises StaleTokenizer, also later, where the model scored another number of tokens than the text has.
    """

    def pick() -> ModelInfo:
        return backend.model_of_kind(job.model, ("token_classifier",), "a token classifier")

    sent = _send(backend, job, pick)
    rows = [row for reply in sent.replies for row in reply.outputs["logits"].rows()]
    texts = [text for text in sent.texts if isinstance(text, str)]

    def labelled() -> Iterator[tuple[Encoding, Scores]]:
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            [encoding] = sent.tokenizer.tokenize([text], truncate=job.truncate, direction=job.direction)
            if len(row) != len(encoding.ids):
                raise StaleTokenizer(
                    f"model {sent.info.name!r} scored {len(row)} tokens of input {i}, which has {len(encoding.ids)}"
                )
            yield encoding, activate(row, "softmax")

    return labelled(), sent.info, sent.measures


def _send(backend: Backend, job: ScoreJob, pick: Callable[[], ModelInfo]) -> _Sent:
    backend.check_batch(len(job.texts), job.field)
    measures = Measures()
    measures.characters = sum(len(t) if isinstance(t, str) else len(t[0]) + len(t[1]) for t in job.texts)

    def work(info: ModelInfo, tokenizer: TextTokenizer) -> _Sent:
        begun = time.monotonic()
        texts = cut_characters(job.texts, tokenizer, job.truncate, job.direction)
        typed = any(declared.name == "token_type_ids" for declared in info.inputs)
        ids = partial(tokenizer.inputs, texts, typed=typed, truncate=job.truncate, direction=job.direction)
        inputs = unpinned.run(ids, measures.characters)
        measures.tokenize_s = time.monotonic() - begun
        backend.tokenized(info.name, measures.tokenize_s)
        measures.tokens = sum(inputs["input_ids"].lengths())
        backend.check_tokens(measures.tokens, job.field)
        replies = backend.send_parts(inputs, info, digest=tokenizer.info.digest)
        measures.add(replies)
        return _Sent(replies, info, measures, texts, tokenizer)

    return backend.with_tokenizer(pick, work)
