"""The native routes of Text-Embeddings-Inference, so that its clients work unchanged."""

from __future__ import annotations

from typing import cast

from flask import Blueprint, Response

from gpu_server import __version__
from gpu_server.errors import RemoteError
from gpu_server.tokenizing import Direction
from web.backend import EmbedJob, backend
from web.body import read
from web.context import traceparent
from web.encoding import json_response
from web.errors import Problem, respond
from web.inputs import as_items
from web.routes.compute import compute_headers
from web.schemas import EmbedRequest

blueprint = Blueprint("tei", __name__)


@blueprint.post("/embed")
@blueprint.post("/")
@blueprint.post("/invocations")
def embed() -> Response:
    """Embeddings as a matrix, for one text too."""
    body = read(EmbedRequest, "inputs")
    job = EmbedJob(
        as_items(body.inputs, "inputs"),
        "inputs",
        normalize=body.normalize is not False,
        dimensions=body.dimensions or 0,
        prompt_name=body.prompt_name or "",
        truncate=body.truncate is not False,
        direction=cast(Direction, (body.truncation_direction or "right").lower()),
        traceparent=traceparent(),
    )
    done = backend().embed(job)
    return json_response(done.vectors, headers=compute_headers(done))


@blueprint.get("/info")
def info() -> Response:
    """Facts of the model that /embed uses. `max_concurrent_requests` is of one worker: the threads that it serves with."""
    served = backend()
    model = served.embedding_model()
    return json_response(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": model.dtype,
            "served_model_name": model.name,
            "model_type": {"embedding": {"pooling": model.pooling}},
            "max_concurrent_requests": served.settings.threads,
            "max_input_length": model.text.max_length if model.text else 0,
            "max_batch_tokens": model.max_batch_tokens,
            "max_batch_requests": model.max_batch_items,
            "max_client_batch_size": served.limits().max_items,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


@blueprint.get("/health")
@blueprint.get("/")
@blueprint.get("/ping")
def health() -> Response:
    """200 with an empty body when a request would be served, else 503."""
    try:
        state = backend().status().state
    except RemoteError as error:
        return _unhealthy(error.message)
    return Response(status=200) if state == "ready" else _unhealthy(f"the daemon's state is {state}")


def _unhealthy(reason: str) -> Response:
    return respond(Problem(503, "Unhealthy", "unhealthy", f"unhealthy: {reason}", retry_after_s=1.0))
