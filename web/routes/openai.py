"""The routes that OpenAI's clients call: embeddings and the list of models."""

from __future__ import annotations

from typing import Any

from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.call import Call
from web.embedding import TextJob, embed
from web.encoding import Answer, base64_rows, json_answer
from web.inputs import as_items
from web.routing import Routes
from web.schemas import EmbeddingsRequest

routes = Routes("openai")


@routes.post(
    "/v1/embeddings",
    "/embeddings",
    "/v1/models/<path:model>/embeddings",
    body=EmbeddingsRequest,
    texts="input",
    hot=True,
)
def embeddings(call: Call, body: EmbeddingsRequest, model: str = "") -> Answer:
    """Normalised embeddings, as floats or base64; `model` may be left out."""
    job = TextJob(as_items(body.input, "input"), "input", model or body.model or "")
    vectors, info, measures = embed(Backend(call), job, dimensions=body.dimensions or 0)
    rows = base64_rows(vectors) if body.encoding_format == "base64" else vectors
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": info.name,
        "usage": {"prompt_tokens": measures.tokens, "total_tokens": measures.tokens},
    }
    return json_answer(answer, headers=measures.headers(info))


@routes.get("/v1/models")
def models(call: Call) -> Answer:
    """The served models, the default first."""
    return json_answer({"object": "list", "data": [_card(m) for m in Backend(call).models()]})


@routes.get("/v1/models/<path:model>")
def model_card(call: Call, model: str) -> Answer:
    """One served model, by its name or the last part of it."""
    return json_answer(_card(Backend(call).model(model)))


def _card(info: ModelInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": 0, "owned_by": "gpu-server"}
