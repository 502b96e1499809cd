"""The embedding routes of Text-Embeddings-Inference and its facts, so that its clients work unchanged."""

from __future__ import annotations

from typing import Any, cast

from gpu_server import __version__
from gpu_server.errors import RemoteError
from gpu_server.tokenizing import Direction
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.call import Call
from web.embedding import TextJob, embed_sparse, embed_tokens
from web.embedding import embed as embed_texts
from web.encoding import Answer, json_answer, json_rows
from web.errors import EmptyInput, Problem, render
from web.inputs import as_items
from web.routing import Routes
from web.schemas import (
    EmbedAllRequest,
    EmbedRequest,
    EmbedSparseRequest,
    SimilarityParameters,
    SimilarityRequest,
)

routes = Routes("tei")


@routes.post("/embed", "/models/<path:model>/embed", body=EmbedRequest, texts="inputs", hot=True)
def embed(call: Call, body: EmbedRequest, model: str = "") -> Answer:
    """Embeddings as a matrix, for one text too."""
    vectors, info, measures = embed_texts(
        Backend(call),
        _job(body, model),
        normalize=body.normalize is not False,
        dimensions=body.dimensions or 0,
    )
    return json_answer(vectors, headers=measures.headers(info))


@routes.post("/embed_all", "/models/<path:model>/embed_all", body=EmbedAllRequest, texts="inputs")
def embed_all(call: Call, body: EmbedAllRequest, model: str = "") -> Answer:
    """The vector of every token, not pooled: a matrix per text."""
    rows, info, measures = embed_tokens(Backend(call), _job(body, model))
    return json_answer(rows, headers=measures.headers(info))


@routes.post("/embed_sparse", "/models/<path:model>/embed_sparse", body=EmbedSparseRequest, texts="inputs")
def sparse(call: Call, body: EmbedSparseRequest, model: str = "") -> Answer:
    """What is not zero of each text's sparse embedding, as index and value."""
    rows, info, measures = embed_sparse(Backend(call), _job(body, model))
    # Numpy's own scalars, which are written with the digits of a float32.
    answer = ([{"index": i, "value": v} for i, v in zip(*row, strict=True)] for row in rows)
    return json_rows(answer, measures.headers(info))


@routes.post("/similarity", "/models/<path:model>/similarity", body=SimilarityRequest)
def similarity(call: Call, body: SimilarityRequest, model: str = "") -> Answer:
    """Cosine of a sentence with each of the others."""
    sentences = body.inputs.sentences
    if not sentences:
        raise EmptyInput("inputs.sentences")
    options = body.parameters or SimilarityParameters()
    job = TextJob(
        [*as_items([body.inputs.source_sentence], "inputs.source_sentence"), *as_items(list(sentences), "inputs.sentences")],
        "inputs.sentences",
        model or body.model or "",
        options.prompt_name or "",
        options.truncate is not False,
        direction_of(options.truncation_direction),
    )  # fmt: skip
    vectors, info, measures = embed_texts(Backend(call), job)
    return json_answer(vectors[1:] @ vectors[0], headers=measures.headers(info))


@routes.get("/info", "/models/<path:model>/info")
def info(call: Call, model: str = "") -> Answer:
    """Facts of the model that POST / uses, or of the one named. `max_concurrent_requests` is of one worker."""
    found = Backend(call).default_model(model)
    settings = call.settings
    return json_answer(
        {
            "model_id": found.name,
            "model_sha": None,
            "model_dtype": found.dtype,
            "served_model_name": found.name,
            "model_type": _model_type(found),
            "max_concurrent_requests": settings.max_concurrent_requests or settings.threads,
            "max_input_length": found.text.max_length if found.text else 0,
            "max_batch_tokens": found.max_batch_tokens,
            "max_batch_requests": found.max_batch_items,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


@routes.get("/health", "/ping", open=True)
@routes.get("/")
def health(call: Call) -> Answer:
    """200 with an empty body when a request would be served, else 503."""
    try:
        state = Backend(call).status().state
    except RemoteError as error:
        return _unhealthy(call, error.message)
    return (
        Answer(content_type="text/plain")
        if state == "ready"
        else _unhealthy(call, f"the daemon's state is {state}")
    )


def direction_of(given: str | None) -> Direction | None:
    """A body's truncation direction in lower case; None means the model's own."""
    return cast(Direction, given.lower()) if given else None


def _job(body: EmbedRequest | EmbedAllRequest, model: str) -> TextJob:
    return TextJob(
        as_items(body.inputs, "inputs"),
        "inputs",
        model or body.model or "",
        body.prompt_name or "",
        body.truncate is not False,
        direction_of(body.truncation_direction),
    )


def _model_type(info: ModelInfo) -> dict[str, Any]:
    if info.kind in ("embedding", "sparse"):
        return {"embedding": {"pooling": info.pooling}}
    if info.kind == "custom":
        return {"custom": {}}
    names = {
        "id2label": {str(i): label for i, label in enumerate(info.labels)},
        "label2id": {label: i for i, label in enumerate(info.labels)},
    }
    return {info.kind: names}


def _unhealthy(call: Call, reason: str) -> Answer:
    problem = Problem(503, "Unhealthy", "unhealthy", f"unhealthy: {reason}", retry_after_s=1.0)
    return render(problem, call.environ)
