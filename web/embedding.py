"""Texts or token ids to what an embedding or sparse model makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpu_server.calls import Params, Vectors
from gpu_server.connection import Reply
from gpu_server.errors import InvalidRequest, UnsupportedOperation
from gpu_server.text_calls import SparseVector, embed_params
from gpu_server.tokenizing import Direction, TextTokenizer, prompt_params
from gpu_server.wire import Tensor
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.inputs import Item, token_ids
from web.measures import Measures
from web.unpinned import unpinned

FLOAT_BYTES = 4


@dataclass(slots=True)
class TextJob:
    """Items of a body's `field`, and how they become tokens; `model` "" means the first that is fit."""

    items: Sequence[Item]
    field: str
    model: str = ""
    prompt_name: str = ""
    truncate: bool = True
    direction: Direction | None = None


def embed(
    backend: Backend, job: TextJob, *, normalize: bool = True, dimensions: int = 0
) -> tuple[Vectors, ModelInfo, Measures]:
    """Vectors, float32 `[items, dimensions]`, their model and what it took. An item that fails alone fails the job."""

    def pick() -> ModelInfo:
        info = backend.model_of_kind(job.model, ("embedding",), "an embedding model")
        if info.dimensions and dimensions > info.dimensions:
            raise InvalidRequest(
                f"dimensions: {dimensions} exceeds the {info.dimensions} of model {info.name!r}",
                {"field": "dimensions"},
            )
        return info

    replies, info, measures = send_texts(backend, job, pick, embed_params(normalize, dimensions))
    parts = [reply.outputs["embedding"].to_numpy() for reply in replies]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    vectors: Vectors = np.ascontiguousarray(whole, np.float32)
    return vectors, info, measures


def embed_tokens(backend: Backend, job: TextJob) -> tuple[list[Vectors], ModelInfo, Measures]:
    """The last hidden states of every token, special ones included: float32 `[tokens, dimensions]` for each item."""

    def pick() -> ModelInfo:
        info = backend.model_of_kind(job.model, ("embedding",), "an embedding model")
        if "token_embeddings" not in info.outputs:
            raise UnsupportedOperation(f"model {info.name!r} gives no token embeddings")
        return info

    replies, info, measures = send_texts(backend, job, pick, {"output": "token_embeddings"}, per_token=True)
    rows = [row for reply in replies for row in reply.outputs["token_embeddings"].rows()]
    return [np.ascontiguousarray(row, np.float32) for row in rows], info, measures


def embed_sparse(backend: Backend, job: TextJob) -> tuple[list[SparseVector], ModelInfo, Measures]:
    """What is not zero of each item's sparse embedding."""
    params: dict[str, str] = {}

    def pick() -> ModelInfo:
        infos = [backend.model(job.model)] if job.model else backend.models()
        for info in infos:
            if info.kind == "sparse" or "sparse" in info.outputs:
                params.update({} if info.kind == "sparse" else {"output": "sparse"})
                return info
        return backend.model_of_kind(job.model, (), "a sparse embedding model")

    replies, info, measures = send_texts(backend, job, pick, params)
    vectors = [
        SparseVector(indices, values)  # type: ignore[arg-type]
        for reply in replies
        for indices, values in zip(
            reply.outputs["sparse_indices"].rows(), reply.outputs["sparse_values"].rows(), strict=True
        )
    ]
    return vectors, info, measures


def send_texts(
    backend: Backend, job: TextJob, pick: Callable[[], ModelInfo], params: Params, *, per_token: bool = False
) -> tuple[list[Reply], ModelInfo, Measures]:
    """Tokenise a job's items and send them; the sizes are checked before anything is computed.

    per_token: whether the answer has a vector for each token.
    """
    backend.check_batch(len(job.items), job.field)
    measures = Measures()

    def work(info: ModelInfo, tokenizer: TextTokenizer) -> tuple[list[Reply], ModelInfo, Measures]:
        begun = time.monotonic()
        ids = partial(token_ids, tokenizer, job.items, job.prompt_name, job.truncate, job.direction)
        rows, measures.characters = unpinned.run(ids, sum(map(len, job.items)))
        measures.tokenize_s = time.monotonic() - begun
        backend.tokenized(info.name, measures.tokenize_s)
        measures.tokens = sum(map(len, rows))
        backend.check_tokens(measures.tokens, job.field)
        if per_token:
            wide = info.text.hidden_size if info.text is not None else 0
            backend.check_answer(measures.tokens * wide * FLOAT_BYTES)
        replies = backend.send_parts(
            {"input_ids": Tensor.from_rows(rows, "i32")},
            info,
            {**params, **prompt_params(tokenizer.info, job.prompt_name)},
            digest=tokenizer.info.digest,
        )
        measures.add(replies)
        return replies, info, measures

    return backend.with_tokenizer(pick, work)
