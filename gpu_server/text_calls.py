"""What a client does with texts: embed, rerank and classify, in as many requests as the daemon's limits make of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gpu_server.calls import (
    Call,
    Calls,
    Param,
    Params,
    Priority,
    Timeout,
    Vectors,
    check_pairs,
    raise_item_errors,
)
from gpu_server.connection import Reply
from gpu_server.errors import InvalidRequest, MissingDependency, StaleTokenizer, UnsupportedOperation
from gpu_server.scores import Scores, activate
from gpu_server.sending import Sending
from gpu_server.sizes import split_to_fit
from gpu_server.tokenizing import Direction, Text, TextTokenizer, check_utf8, prompt_params
from gpu_server.wire import Limits, Tensor, Tensors
from gpu_server.wire.documents import ModelInfo

ID_BYTES = 4
TOKEN_FLOATS = 16 << 20
"""In one answer at most: a vector for each token can be thousands of times as large as the request."""
Encode = Callable[[Sequence[Text], int], Tensors]
"""Texts, and the number of the first of them among all, to the inputs of a request."""


class SparseVector(NamedTuple):
    """What is not 0 of a vector: int32 indices, ascending, and their float32 values."""

    indices: NDArray[np.int32]
    values: NDArray[np.float32]


class TokenLabel(NamedTuple):
    """A token with the label that suits it best; `start` and `end` count characters of its text."""

    token: str
    label: str
    score: float
    start: int
    end: int


class TextCalls(Calls):
    """The calls of one client that take text."""

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool | None = None,
        dimensions: int = 0,
        model: str = "",
        timeout_s: Timeout = None,
        **options: Any,
    ) -> Call[Vectors]:
        """Embeddings of any number of texts."""
        deadline = self.deadline(timeout_s)
        listed = _listed(texts)
        info = yield from self._model(model, ("embedding", "custom"), "an embedding model", deadline)
        params = embed_params(normalize, dimensions)
        answers = yield from self._answers(listed, info, params=params, timeout_s=deadline, **options)
        size = dimensions or int(info.params.get("dimensions") or info.dimensions)
        empty = np.zeros((0, size), np.float32)
        parts = [outputs["embedding"].to_numpy() for outputs in answers] or [empty]
        return np.concatenate(parts).astype(np.float32, copy=False)

    def embed_tokens(
        self, texts: str | Sequence[str], *, model: str = "", timeout_s: Timeout = None, **options: Any
    ) -> Call[list[Vectors]]:
        """Embeddings of every token of each text."""
        deadline = self.deadline(timeout_s)
        listed = _listed(texts)
        info = yield from self._model(model, ("embedding",), "an embedding model", deadline)
        params = {"output": "token_embeddings"}
        wide = info.text.hidden_size if info.text is not None else 0
        answers = yield from self._answers(
            listed, info, params=params, timeout_s=deadline, floats_a_token=wide, **options
        )
        return [row for outputs in answers for row in _floats(outputs["token_embeddings"])]

    def embed_sparse(
        self, texts: str | Sequence[str], *, model: str = "", timeout_s: Timeout = None, **options: Any
    ) -> Call[list[SparseVector]]:
        """Sparse vectors of each text."""
        deadline = self.deadline(timeout_s)
        listed = _listed(texts)
        info = yield from self._model(model, ("sparse", "embedding"), "a sparse model", deadline)
        if info.kind == "embedding" and "sparse" not in info.outputs:
            raise not_a(info, "a sparse model")
        params = {"output": "sparse"} if info.kind == "embedding" else {}
        answers = yield from self._answers(listed, info, params=params, timeout_s=deadline, **options)
        vectors: list[SparseVector] = []
        for outputs in answers:
            indices = [row.astype(np.int32) for row in outputs["sparse_indices"].rows()]
            vectors += map(SparseVector, indices, _floats(outputs["sparse_values"]))
        return vectors

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str = "",
        raw_scores: bool = False,
        timeout_s: Timeout = None,
        **options: Any,
    ) -> Call[Scores]:
        """How well each document answers the query, in the order given."""
        deadline = self.deadline(timeout_s)
        pairs = [(query, document) for document in _listed(documents)]
        info = yield from self._model(model, ("reranker",), "a reranker", deadline)
        scores = yield from self._scores(pairs, info, raw_scores, timeout_s=deadline, **options)
        return scores[:, 0]

    def classify(
        self,
        texts: Text | Sequence[Text],
        *,
        model: str = "",
        raw_scores: bool = False,
        timeout_s: Timeout = None,
        **options: Any,
    ) -> Call[Scores]:
        """Scores of each text's, or pair's, labels."""
        deadline = self.deadline(timeout_s)
        listed = _listed(texts, pairs=True)
        kinds = ("classifier", "reranker")
        info = yield from self._model(model, kinds, "a classifier", deadline)
        scores = yield from self._scores(listed, info, raw_scores, timeout_s=deadline, **options)
        return scores

    def classify_tokens(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        timeout_s: Timeout = None,
        **options: Any,
    ) -> Call[list[list[TokenLabel]]]:
        """The label of each token of each text, special tokens left out."""
        deadline = self.deadline(timeout_s)
        listed = _listed(texts)
        info = yield from self._model(model, ("token_classifier",), "a token classifier", deadline)
        cut: dict[str, Any] = {"truncate": truncate, "direction": direction}
        yield from self._own_tokenizer(info, deadline)
        answers = yield from self._answers(
            listed, info, timeout_s=deadline, floats_a_token=len(info.labels), **cut, **options
        )
        # Asked for anew: it may have changed meanwhile, and then the requests were made again.
        tokenizer = yield from self._own_tokenizer(info, deadline)
        encodings = yield partial(tokenizer.tokenize, listed, **cut)
        rows = [row for outputs in answers for row in _floats(outputs["logits"])]
        return [_labelled(e, activate(row, "softmax"), info) for e, row in zip(encodings, rows, strict=True)]

    def text_request(self, texts: Sequence[Text], **options: Any) -> Call[Reply]:
        """One request of texts; options as `text_requests`. Raises TooLarge if they do not fit one."""
        replies = yield from self.text_requests(texts, whole=True, **options)
        return replies[0]

    def text_requests(
        self,
        texts: Sequence[Text],
        *,
        model: str = "",
        params: Params | None = None,
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: Timeout = None,
        traceparent: str = "",
        whole: bool = False,
        floats_a_token: int = 0,
    ) -> Call[list[Reply]]:
        """Requests of texts or pairs, a single one if `whole`: tokenised here where that is possible, else sent as text.

        floats_a_token: that an answer holds, if it grows with them; requests are then as small as that needs.
        """
        deadline = self.deadline(timeout_s)
        for attempt in (1, 2):
            tokenizer = yield from self.tokenizer(model, deadline)
            info = yield from self.model(model, deadline)
            limits = (yield from self.hello(timeout_s=deadline)).limits
            check_pairs(info, any(isinstance(text, tuple) for text in texts))
            extra: dict[str, Param] = {}
            if tokenizer is None:
                encode: Encode = _as_text
                extra = {"truncate": truncate, "prompt_name": prompt_name}
                if direction is not None:
                    extra["truncation_direction"] = direction
            else:
                encode = _encoder(tokenizer, info, prompt_name, truncate, direction)
                extra = {**prompt_params(tokenizer.info, prompt_name)}
            sending = self.sending(
                limits, deadline, model=model, params={**(params or {}), **extra}, priority=priority,
                digest=tokenizer.info.digest if tokenizer else "", traceparent=traceparent,
            )  # fmt: skip
            try:
                parts = (
                    _parts(limits, TOKEN_FLOATS // floats_a_token, info, tokenizer)
                    if floats_a_token
                    else limits
                )
                yield from _send(sending, texts, encode, parts, whole)
                return sending.replies
            except StaleTokenizer:
                if attempt == 2:
                    raise
                yield from self.hello(refresh=True, timeout_s=deadline)
        raise AssertionError("unreachable")

    def _answers(
        self, texts: Sequence[Text], info: ModelInfo, *, timeout_s: Timeout, **options: Any
    ) -> Call[list[Tensors]]:
        """The outputs of each request that the texts need; raises the first error of an item."""
        if not texts:
            return []
        replies = yield from self.text_requests(texts, model=info.name, timeout_s=timeout_s, **options)
        done = 0
        for reply in replies:
            raise_item_errors(reply, done)
            done += next(iter(reply.outputs.values())).items
        return [reply.outputs for reply in replies]

    def _scores(
        self, texts: Sequence[Text], info: ModelInfo, raw_scores: bool, **options: Any
    ) -> Call[Scores]:
        answers = yield from self._answers(texts, info, **options)
        empty = np.zeros((0, len(info.labels)), np.float32)
        logits = np.concatenate([outputs["logits"].to_numpy() for outputs in answers] or [empty])
        return activate(logits, "identity" if raw_scores else info.activation)

    def _own_tokenizer(self, info: ModelInfo, deadline: Timeout) -> Call[TextTokenizer]:
        tokenizer = yield from self.tokenizer(info.name, deadline)
        if tokenizer is None:
            raise MissingDependency("labels of tokens need the package tokenizers: pip install tokenizers")
        return tokenizer

    def _model(self, name: str, kinds: Collection[str], what: str, deadline: Timeout) -> Call[ModelInfo]:
        info = yield from self.model(name, deadline)
        if info.kind not in kinds:
            raise not_a(info, what)
        return info


def embed_params(normalize: bool | None, dimensions: int) -> dict[str, Param]:
    """The parameters of an embedding request that differ from the model's own."""
    params: dict[str, Param] = {}
    if normalize is not None:
        params["normalize"] = normalize
    if dimensions:
        params["dimensions"] = dimensions
    return params


def not_a(info: ModelInfo, what: str) -> UnsupportedOperation:
    """The error of a call that a model is not made for."""
    return UnsupportedOperation(
        f"model {info.name!r} is not {what}; its kind is {info.kind}", {"model": info.name, "kind": info.kind}
    )


def _listed(texts: Any, pairs: bool = False) -> list[Any]:
    """Texts as a list; raises InvalidRequest naming the first that is none, or is no pair among pairs."""
    single = isinstance(texts, str) or (pairs and isinstance(texts, tuple))
    listed = [texts] if single else list(texts)
    wants_pairs = pairs and bool(listed) and isinstance(listed[0], tuple | list)
    for i, text in enumerate(listed):
        parts = text if wants_pairs and isinstance(text, tuple | list) and len(text) == 2 else (text,)
        if len(parts) != 1 + wants_pairs or not all(isinstance(part, str) for part in parts):
            wanted = "a pair of str" if wants_pairs else "str"
            raise InvalidRequest(f"text {i} is {type(text).__name__}, not {wanted}", {"item": i})
    return [tuple(text) for text in listed] if wants_pairs else listed


def _floats(tensor: Tensor) -> list[NDArray[np.float32]]:
    """The items of a ragged tensor, the caller's own."""
    return [row.astype(np.float32) for row in tensor.rows()]


def _parts(limits: Limits, tokens: int, info: ModelInfo, tokenizer: TextTokenizer | None) -> Limits:
    """Limits of parts that have so many tokens, as far as texts that are tokenised elsewhere let one know."""
    if tokenizer is not None:
        return replace(limits, max_request_bytes=min(limits.max_request_bytes, ID_BYTES * tokens))
    longest = info.text.max_length if info.text is not None else tokens
    return replace(limits, max_items=max(1, min(limits.max_items, tokens // longest)))


def _send(sending: Sending, texts: Sequence[Text], encode: Encode, limits: Limits, whole: bool) -> Call[None]:
    """Encode and send texts, as one request if `whole`: some are encoded while those before them are computed."""
    step = len(texts) if whole else limits.max_items
    with sending:
        for start in range(0, len(texts), step):
            inputs = yield partial(encode, texts[start : start + step], start)
            for part in [inputs] if whole else split_to_fit(inputs, limits):
                yield from sending.add(part)
        yield from sending.finish()


def _encoder(
    tokenizer: TextTokenizer, info: ModelInfo, prompt_name: str, truncate: bool, direction: Direction | None
) -> Encode:
    typed = any(declared.name == "token_type_ids" for declared in info.inputs)

    def encode(texts: Sequence[Text], first: int) -> Tensors:
        return tokenizer.inputs(
            texts, typed=typed, prompt_name=prompt_name, truncate=truncate, direction=direction, first=first
        )

    return encode


def _as_text(texts: Sequence[Text], first: int) -> Tensors:
    columns = list(zip(*texts, strict=True)) if isinstance(texts[0], tuple) else [texts]
    try:
        return {
            name: Tensor.from_strings(column)
            for name, column in zip(("text", "text_pair"), columns, strict=False)
        }
    except UnicodeEncodeError:
        check_utf8(texts, first)
        raise


def _labelled(encoding: Any, scores: Scores, info: ModelInfo) -> list[TokenLabel]:
    best = scores.argmax(axis=1)
    return [
        TokenLabel(token, info.labels[best[i]], float(scores[i, best[i]]), *encoding.offsets[i])
        for i, token in enumerate(encoding.tokens)
        if not encoding.special_tokens_mask[i]
    ]
