"""Classifying and reranking: TEI's routes, those of Cohere, Jina and vLLM, and vLLM's score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpu_server.calls import Vectors
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.call import Call
from web.embedding import TextJob, embed
from web.encoding import Answer, json_answer, json_rows
from web.errors import BadField, EmptyInput
from web.inputs import as_pairs, as_texts
from web.measures import Measures
from web.routes.tei import direction_of
from web.routing import Routes
from web.schemas import (
    ClassifyRequest,
    PredictRequest,
    RankRequest,
    RerankDocument,
    RerankRequest,
    ScoreRequest,
)
from web.scoring import CLASSIFIERS, RERANKERS, ScoreJob, score

routes = Routes("tei")


@routes.post("/predict", "/models/<path:model>/predict", body=PredictRequest, texts="inputs", hot=True)
def predict(call: Call, body: PredictRequest, model: str = "") -> Answer:
    """Labels and scores, best first: a list for one text or pair, else a list of lists."""
    single, pairs = as_pairs(body.inputs, "inputs")
    job = ScoreJob(
        pairs,
        "inputs",
        CLASSIFIERS,
        model or body.model or "",
        body.raw_scores is True,
        body.truncate is not False,
        direction_of(body.truncation_direction),
    )
    scores, info, measures = score(Backend(call), job)
    answer = _predictions(scores, info.labels)
    headers = measures.headers(info)
    return json_answer(next(answer), headers=headers) if single else json_rows(answer, headers)


@routes.post("/rerank", "/models/<path:model>/rerank", body=RerankRequest, texts="texts", hot=True)
def rerank(call: Call, body: RerankRequest, model: str = "") -> Answer:
    """Scores of texts for a query, best first; with `documents` in place of `texts`, as /v1/rerank."""
    if body.texts is None:
        return _rank(call, body, model)
    texts = as_texts(body.texts, "texts")
    scores, info, measures = _rerank(call, body, texts, "texts", model)
    answer: list[dict[str, Any]] = []
    for i in _best_first(scores):
        entry: dict[str, Any] = {"index": i, "score": scores[i]}
        answer.append(entry | {"text": texts[i]} if body.return_text else entry)
    return json_answer(answer, headers=measures.headers(info))


@routes.post(
    "/v1/rerank", "/v1/models/<path:model>/rerank", body=RankRequest, texts="documents", dialect="openai"
)
@routes.post("/v2/rerank", body=RankRequest, texts="documents", dialect="cohere")
def rank(call: Call, body: RankRequest, model: str = "") -> Answer:
    """Relevance of documents to a query, best first, as clients of Cohere, Jina and vLLM read it."""
    return _rank(call, body, model)


@routes.post("/v1/score", "/score", "/v1/models/<path:model>/score", body=ScoreRequest, dialect="openai")
def score_pairs(call: Call, body: ScoreRequest, model: str = "") -> Answer:
    """Scores of pairs: of a reranker, else the cosine of an embedding model's vectors."""
    first = _texts(body.text_1, body.queries, "text_1")
    second = _texts(body.text_2, body.documents, "text_2")
    if len(first) not in (1, len(second)):
        raise BadField(
            "text_2", f"{len(second)} texts for {len(first)} in text_1: not one to many, nor equally many"
        )
    backend = Backend(call)
    name = model or body.model or ""
    if embedder := _embedder(backend, name):
        backend.check_batch(len(second), "text_2")
        vectors, info, measures = embed(backend, TextJob([*first, *second], "text_2", embedder))
        values = np.einsum("ij,ij->i", vectors[: len(first)], vectors[len(first) :])
    else:
        pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
        scores, info, measures = score(backend, ScoreJob(pairs, "text_2", RERANKERS, name))
        values = scores[:, 0]
    data = [{"index": i, "object": "score", "score": value} for i, value in enumerate(values)]
    return json_answer(_listed(call, "score", info, measures, data), headers=measures.headers(info))


@routes.post(
    "/v1/classify", "/classify", "/v1/models/<path:model>/classify", body=ClassifyRequest, dialect="openai"
)
def classify(call: Call, body: ClassifyRequest, model: str = "") -> Answer:
    """The likeliest label of each text, and the probability of each."""
    texts = as_texts(body.input, "input")
    job = ScoreJob(texts, "input", CLASSIFIERS, model or body.model or "")
    scores, info, measures = score(Backend(call), job)
    data = [
        {"index": i, "label": info.labels[row.argmax()], "probs": row, "num_classes": len(row)}
        for i, row in enumerate(scores)
    ]
    return json_answer(_listed(call, "classify", info, measures, data), headers=measures.headers(info))


def _embedder(backend: Backend, name: str) -> str:
    """The embedding model that scores pairs: the one of that name, or the first where no reranker is served; "" if none."""
    infos = [backend.model(name)] if name else backend.models()
    if any(info.kind in RERANKERS for info in infos):
        return ""
    return next((info.name for info in infos if info.kind == "embedding" and info.text), "")


def _rank(call: Call, body: RankRequest | RerankRequest, model: str) -> Answer:
    if body.documents is None:
        raise BadField("texts", "required, and missing")
    texts = as_texts([d.text if isinstance(d, RerankDocument) else d for d in body.documents], "documents")
    scores, info, measures = _rerank(call, body, texts, "documents", model)
    results: list[dict[str, Any]] = []
    for i in _best_first(scores)[: body.top_n]:
        entry: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
        results.append(entry | {"document": {"text": texts[i]}} if body.return_documents else entry)
    answer = {
        "id": call.request_id,
        "model": info.name,
        "results": results,
        "usage": {"total_tokens": measures.tokens},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }
    return json_answer(answer, headers=measures.headers(info))


def _rerank(
    call: Call, body: RankRequest | RerankRequest, texts: Sequence[str], field: str, model: str
) -> tuple[Vectors, ModelInfo, Measures]:
    """Scores of texts for the body's query, float32 `[texts]`."""
    if not body.query:
        raise EmptyInput("query")
    job = ScoreJob([(body.query, text) for text in texts], field, RERANKERS, model or body.model or "")
    if isinstance(body, RerankRequest):
        job.raw_scores = body.raw_scores is True
        job.truncate = body.truncate is not False
        job.direction = direction_of(body.truncation_direction)
    scores, info, measures = score(Backend(call), job)
    return scores[:, 0], info, measures


def _best_first(scores: Vectors) -> list[int]:
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order


def _predictions(scores: Vectors, labels: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    return ([{"score": row[i], "label": labels[i]} for i in _best_first(row)] for row in scores)


def _texts(value: str | list[str] | None, other: str | list[str] | None, field: str) -> list[str]:
    given = value if value is not None else other
    if given is None:
        raise BadField(field, "required, and missing")
    return as_texts(given, field)


def _listed(
    call: Call, kind: str, info: ModelInfo, measures: Measures, data: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": f"{kind}-{call.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": info.name,
        "data": data,
        "usage": {"prompt_tokens": measures.tokens, "total_tokens": measures.tokens},
    }
