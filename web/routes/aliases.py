"""Routes that do what suits the model: / and /invocations for Inference Endpoints and SageMaker, /vertex for Vertex AI."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from gpu_server.errors import UnsupportedOperation
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.body import decode, read
from web.call import Call
from web.encoding import Answer
from web.errors import BadField, EmptyInput
from web.routes.generic import infer
from web.routes.scores import predict, rerank
from web.routes.tei import embed, similarity, sparse
from web.routes.tokens import classify_tokens
from web.routing import Handler, Routes
from web.schemas import (
    EmbedRequest,
    EmbedSparseRequest,
    InferRequest,
    PredictRequest,
    RerankRequest,
    SimilarityRequest,
    TokenClassificationRequest,
    VertexRequest,
)
from web.settings import SIMILARITY

routes = Routes("tei")

INSTANCES_AT_ONCE = 16
JSON_TIMES = 3
"""How many times as large as the numbers their JSON is, about."""
"""Instances of one /vertex request that are on their way at the same time."""


class Native(NamedTuple):
    """What a model is for: its handler, the body of that and the field of its texts."""

    handler: Handler
    body: type[msgspec.Struct]
    texts: str = "inputs"


SIMILAR = Native(similarity, SimilarityRequest, "")
RERANK = Native(rerank, RerankRequest, "texts")
BY_KIND = {
    "embedding": Native(embed, EmbedRequest),
    "sparse": Native(sparse, EmbedSparseRequest),
    "classifier": Native(predict, PredictRequest),
    "reranker": RERANK,
    "token_classifier": Native(classify_tokens, TokenClassificationRequest),
}


NATIVE = (*(native.body for native in BY_KIND.values()), SimilarityRequest, InferRequest)


@routes.post("/", "/invocations", "/models/<path:model>", reads=NATIVE)
def native(call: Call, model: str = "") -> Answer:
    """The route that suits the model: embed, embed_sparse, predict, rerank, token classification, or infer for your own."""
    info = Backend(call).default_model(model)
    if info.kind == "custom":
        return infer(call, info.name)
    chosen = _native(call, info)
    return chosen.handler(call, read(call, chosen.body, chosen.texts), info.name)


@routes.post("/vertex", body=VertexRequest)
def vertex(call: Call, body: VertexRequest) -> Answer:
    """Each instance as the route that suits the model would answer it; a query with texts is reranked."""
    backend = Backend(call)
    info = backend.default_model()
    if info.kind == "custom":
        raise UnsupportedOperation(f"model {info.name!r} is not a text model; use /v1/models/<model>/infer")
    instances = [_instance(call, info, i, bytes(raw)) for i, raw in enumerate(body.instances)]
    answers: list[bytes] = []
    size = 0
    with ThreadPoolExecutor(min(len(instances), INSTANCES_AT_ONCE)) as pool:
        for answer in pool.map(lambda instance: instance(), instances):
            answers.append(answer.body)
            size += len(answer.body)
            backend.check_answer(size // JSON_TIMES, "send fewer instances")
    return Answer(b'{"predictions":[%b]}' % b",".join(answers))


def _instance(call: Call, info: ModelInfo, i: int, raw: bytes) -> Callable[[], Answer]:
    """What answers an instance, whose shape is checked already: one that does not fit stops all before they begin."""
    chosen = _native(call, info)
    if info.kind == "reranker" and b'"query"' not in raw:
        chosen = BY_KIND["classifier"]
    try:
        body = decode(raw, chosen.body, chosen.texts)
    except BadField as error:
        raise BadField(f"instances[{i}]", str(error.description)) from None

    def answer() -> Answer:
        try:
            return chosen.handler(call, body, info.name)
        except EmptyInput as error:
            raise EmptyInput(f"instances[{i}].{error.field}") from None
        except BadField as error:
            raise BadField(f"instances[{i}]", str(error.description)) from None

    return answer


def _native(call: Call, info: ModelInfo) -> Native:
    if info.kind == "embedding" and call.settings.task == SIMILARITY:
        return SIMILAR
    return BY_KIND[info.kind]
