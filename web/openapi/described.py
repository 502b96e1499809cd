"""Every handler of the routing table, described under module.function; a test holds the two together."""

from __future__ import annotations

from web import answers as a
from web import schemas as s
from web.openapi import examples as e
from web.openapi.about import About

BYTES = {"type": "string", "format": "binary"}
TEXT = {"type": "string"}
NOTHING = {"type": "string", "maxLength": 0}
FORM = {"type": "object", "description": "a part per item, named after its input; `parameters` is JSON"}
SINCE = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1, "description": "the number of a point"}
PACKED = "application/msgpack"
RAW = "application/octet-stream"
TENSOR_HEADERS = {
    "x-tensor-name": "of a raw tensor: the input it is for",
    "x-tensor-dtype": "of a raw tensor: f32, i64, … where the model leaves a choice",
    "x-tensor-shape": "of a raw tensor: its sizes, such as 1,3,224,224",
}
JSON_LENGTH = {
    "inference-header-content-length": "bytes of JSON in front of the tensors, where any follow it"
}

_SPARSE = list[list[a.SparseValue]]
_PREDICTIONS = (list[a.Prediction], list[list[a.Prediction]])
_RANKINGS = (list[a.Ranked], a.RankAnswer)
_ENTITIES = (list[a.Entity], list[list[a.Entity]], list[a.LabelledToken], list[list[a.LabelledToken]])
_NATIVE = (a.Vectors, _SPARSE, *_PREDICTIONS, *_RANKINGS, *_ENTITIES, a.Vector, a.InferAnswer)
_OTHER_BODIES = {PACKED: s.PackedInferRequest, "multipart/form-data": FORM, RAW: BYTES, "image/*": BYTES}

DESCRIBED: dict[str, About] = {
    "tei.embed": About(tag="TEI", answers=(a.Vectors,), examples=e.EMBED, model=e.EMBEDDER, measured=True),
    "tei.embed_all": About(tag="TEI", answers=(a.TokenVectors,), examples=e.EMBED_ALL, model=e.EMBEDDER, measured=True),
    "tei.sparse": About(tag="TEI", answers=(_SPARSE,), examples=e.EMBED_SPARSE, model=e.SPARSE, measured=True),
    "tei.similarity": About(tag="TEI", answers=(a.Vector,), examples=e.SIMILARITY, model=e.EMBEDDER, measured=True),
    "tei.info": About(tag="TEI", answers=(a.Info,), examples=e.INFO, model=e.EMBEDDER),
    "scores.predict": About(tag="TEI", answers=_PREDICTIONS, examples=e.PREDICT, model=e.CLASSIFIER, measured=True),
    "tokens.classify_tokens": About(
        tag="TEI", answers=_ENTITIES, examples=e.TOKEN_CLASSIFICATION, model=e.TAGGER, measured=True
    ),
    "text.tokenize": About(tag="TEI", answers=(list[list[a.Token]],), examples=e.TOKENIZE, model=e.EMBEDDER),
    "text.decode": About(tag="TEI", answers=(list[str],), examples=e.DECODE, model=e.EMBEDDER),
    "aliases.native": About(tag="TEI", answers=_NATIVE, examples=e.EMBED, model=e.EMBEDDER),
    "aliases.vertex": About(tag="TEI", answers=(a.Predictions,), examples=e.VERTEX),
    "openai.embeddings": About(
        tag="OpenAI", answers=(a.EmbeddingsAnswer,), examples=e.EMBEDDINGS, model=e.EMBEDDER, measured=True
    ),
    "openai.models": About(tag="OpenAI", answers=(a.ModelList,), examples=e.MODELS),
    "openai.model_card": About(tag="OpenAI", answers=(a.ModelCard,), examples=e.MODEL, model=e.EMBEDDER),
    "scores.rerank": About(tag="rerank", answers=_RANKINGS, examples=e.RERANK, model=e.RERANKER, measured=True),
    "scores.rank": About(tag="rerank", answers=(a.RankAnswer,), examples=e.RANK, model=e.RERANKER, measured=True),
    "scores.score_pairs": About(tag="rerank", answers=(a.ScoreAnswer,), examples=e.SCORE, model=e.RERANKER, measured=True),
    "scores.classify": About(
        tag="rerank", answers=(a.ClassifyAnswer,), examples=e.CLASSIFY, model=e.CLASSIFIER, measured=True
    ),
    "generic.infer": About(
        tag="generic", answers=(a.InferAnswer,), examples=e.INFER, takes=_OTHER_BODIES, model=e.CUSTOM,
        gives={PACKED: a.PackedInferAnswer}, headers=TENSOR_HEADERS,
    ),
    "kserve.server": About(tag="KServe", answers=(a.KServeServer,), examples=e.KSERVE_SERVER, failures=()),
    "kserve.live": About(tag="KServe", answers=(a.Live,), examples=e.KSERVE_LIVE, failures=()),
    "kserve.ready": About(
        tag="KServe", answers=(a.Ready,), examples=e.KSERVE_READY, failures=(), unready=a.Ready
    ),
    "kserve.model_metadata": About(tag="KServe", answers=(a.KServeModel,), examples=e.KSERVE_MODEL, model=e.CUSTOM),
    "kserve.model_ready": About(tag="KServe", answers=(a.ModelReady,), examples=e.KSERVE_MODEL_READY, model=e.CUSTOM),
    "kserve.model_infer": About(
        tag="KServe", answers=(a.KServeInferAnswer,), examples=e.KSERVE_INFER,
        takes={RAW: BYTES}, gives={RAW: BYTES}, headers=JSON_LENGTH, model=e.CUSTOM,
    ),
    "tei.health": About(tag="health", gives={"text/plain": NOTHING}, failures=(503,)),
    "health.livez": About(tag="health", answers=(a.Alive,), examples=e.ALIVE, failures=()),
    "health.readyz": About(
        tag="health", answers=(a.ReadyState,), examples=e.READY, failures=(), unready=a.ReadyState
    ),
    "health.metrics": About(tag="health", gives={"text/plain": TEXT}, failures=(404,)),
    "dashboard.dashboard": About(tag="health", gives={"text/html": TEXT}, failures=(404,)),
    "dashboard.data": About(
        tag="health", answers=(a.Watched,), examples=e.WATCHED, query={"since": SINCE}, failures=(404, 422, 503, 504)
    ),
    "docs.openapi": About(tag="docs", gives={"application/json": {"type": "object"}}, failures=()),
    "docs.page": About(tag="docs", gives={"text/html": TEXT}, failures=()),
}  # fmt: skip
