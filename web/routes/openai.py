"""The routes that OpenAI's clients call: embeddings and the list of models."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from gpu_server.wire.documents import ModelInfo
from web.backend import EmbedJob, backend
from web.body import read
from web.context import traceparent
from web.encoding import base64_rows, json_response
from web.inputs import as_items
from web.routes.compute import compute_headers
from web.schemas import EmbeddingsRequest

blueprint = Blueprint("openai", __name__)


@blueprint.post("/v1/embeddings")
@blueprint.post("/embeddings")
def embeddings() -> Response:
    """Normalised embeddings, as floats or base64; `model` may be left out."""
    body = read(EmbeddingsRequest, "input")
    job = EmbedJob(
        as_items(body.input, "input"),
        "input",
        model=body.model or "",
        dimensions=body.dimensions or 0,
        traceparent=traceparent(),
    )
    done = backend().embed(job)
    rows = base64_rows(done.vectors) if body.encoding_format == "base64" else done.vectors
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": done.model.name,
        "usage": {"prompt_tokens": done.tokens, "total_tokens": done.tokens},
    }
    return json_response(answer, headers=compute_headers(done))


@blueprint.get("/v1/models")
def models() -> Response:
    """The served models, the default first."""
    return json_response({"object": "list", "data": [_card(m) for m in backend().models()]})


@blueprint.get("/v1/models/<path:name>")
def model(name: str) -> Response:
    """One served model, by its name or the last part of it."""
    return json_response(_card(backend().model(name)))


def _card(info: ModelInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": 0, "owned_by": "gpu-server"}
