"""Requests and answers shown in the document; tests send each request and compare the shape of its answer."""

from __future__ import annotations

from typing import Any

from gpu_server import __version__
from web.openapi.about import Example

EMBEDDER, RERANKER, CLASSIFIER, SPARSE, TAGGER, CUSTOM = (
    "all-MiniLM-L6-v2", "reranker", "classifier", "sparse", "tagger", "linear",
)  # fmt: skip
"""Names of served models: one of each kind."""

Examples = dict[str, Example]
QUERY = "What do people eat?"
FOOD, SKY = TEXTS = ["A man is eating food.", "The night sky is full of stars."]
VECTOR, OTHER = [0.0421, -0.0137, 0.0892], [-0.0315, 0.0644, 0.0023]
USAGE = {"prompt_tokens": 8, "total_tokens": 8}
CARD = {"id": EMBEDDER, "object": "model", "created": 0, "owned_by": "gpu-server"}

EMBED: Examples = {
    "a text": Example({"inputs": FOOD}, [VECTOR]),
    "texts": Example({"inputs": TEXTS, "truncate": True, "normalize": True}, [VECTOR, OTHER]),
    "token ids": Example({"inputs": [101, 102]}, [VECTOR]),
}
EMBED_ALL: Examples = {"a text": Example({"inputs": "Hello"}, [[VECTOR, OTHER, VECTOR]])}
EMBED_SPARSE: Examples = {
    "a text": Example({"inputs": FOOD}, [[{"index": 2158, "value": 1.21}, {"index": 2833, "value": 2.04}]])
}
SIMILARITY: Examples = {
    "two sentences": Example({"inputs": {"source_sentence": QUERY, "sentences": TEXTS}}, [0.6112, 0.0431])
}
INFO: Examples = {
    "an embedding model": Example(
        None,
        {
            "model_id": EMBEDDER,
            "model_sha": None,
            "model_dtype": "float16",
            "served_model_name": EMBEDDER,
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": 64,
            "max_input_length": 256,
            "max_batch_tokens": 16384,
            "max_batch_requests": 512,
            "max_client_batch_size": 2048,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        },
    )
}
_LABELS = [{"score": 0.8713, "label": "positive"}, {"score": 0.1287, "label": "negative"}]
PREDICT: Examples = {
    "a text": Example({"inputs": FOOD}, _LABELS),
    "a pair": Example({"inputs": [QUERY, FOOD]}, _LABELS),
    "a batch": Example({"inputs": [[FOOD], [QUERY, SKY]]}, [_LABELS, _LABELS]),
}
_RANKED = {
    "id": "7f3c",
    "model": RERANKER,
    "results": [{"index": 0, "relevance_score": 0.9731}, {"index": 1, "relevance_score": 0.0214}],
    "usage": {"total_tokens": 31},
    "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
}
RANK: Examples = {"documents": Example({"query": QUERY, "documents": TEXTS}, _RANKED)}
RERANK: Examples = {
    "texts": Example(
        {"query": QUERY, "texts": TEXTS, "return_text": True},
        [{"index": 0, "score": 0.9731, "text": FOOD}, {"index": 1, "score": 0.0214, "text": SKY}],
    ),
    **RANK,
}


def _listed(kind: str, model: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"id": f"{kind}-7f3c", "object": "list", "created": 1767225600, "model": model}
    return about | {"data": data, "usage": USAGE}


SCORE: Examples = {
    "one to many": Example(
        {"text_1": QUERY, "text_2": TEXTS},
        _listed("score", RERANKER, [{"index": 0, "object": "score", "score": 0.9731}]),
    )
}
CLASSIFY: Examples = {
    "texts": Example(
        {"input": TEXTS},
        _listed(
            "classify",
            CLASSIFIER,
            [{"index": 0, "label": "positive", "probs": [0.1287, 0.8713], "num_classes": 2}],
        ),
    )
}
_ENTITY = {"entity_group": "PER", "score": 0.9912, "word": "Ada", "start": 0, "end": 3}
_TOKEN = {"entity": "B-PER", "score": 0.9912, "index": 1, "word": "Ada", "start": 0, "end": 3}
TOKEN_CLASSIFICATION: Examples = {
    "a text": Example({"inputs": "Ada wrote this."}, [_ENTITY]),
    "texts": Example({"inputs": ["Ada wrote this."]}, [[_ENTITY]]),
    "tokens": Example(
        {"inputs": "Ada wrote this.", "parameters": {"aggregation_strategy": "none", "ignore_labels": []}},
        [_TOKEN],
    ),
}
_CLS = {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
_HELLO = {"id": 7592, "text": "Hello", "special": False, "start": 0, "stop": 5}
TOKENIZE: Examples = {
    "a text": Example({"inputs": "Hello"}, [[_CLS, _HELLO]]),
    "without special tokens": Example({"inputs": ["Hello"], "add_special_tokens": False}, [[_HELLO]]),
}
DECODE: Examples = {
    "ids of a text": Example({"ids": [101, 102]}, [""]),
    "several": Example({"ids": [[101], [102]], "skip_special_tokens": False}, ["[CLS]", "[SEP]"]),
}


def _embeddings(asked: dict[str, Any], row: list[float] | str) -> Example:
    data = [{"object": "embedding", "index": 0, "embedding": row}]
    return Example(asked, {"object": "list", "data": data, "model": EMBEDDER, "usage": USAGE})


EMBEDDINGS: Examples = {
    "floats": _embeddings({"input": FOOD, "model": EMBEDDER}, VECTOR),
    "base64": _embeddings({"input": FOOD, "encoding_format": "base64"}, "JzEsPT98YLz/sbY9"),
}
MODELS: Examples = {"one model": Example(None, {"object": "list", "data": [CARD]})}
MODEL: Examples = {"a model": Example(None, CARD)}
INFER: Examples = {
    "an item": Example(
        {"inputs": {"x": [[1, 2, 3, 4, 5, 6, 7, 8]], "nonce": [17]}},
        {
            "model": CUSTOM,
            "version": "1",
            "outputs": {"y": [[0.31, -0.02, 0.77, 1.4]], "nonce": [17]},
            "item_errors": [],
            "timing": {
                "queue_us": 131,
                "compute_us": 842,
                "total_us": 973,
                "batch_items": 1,
                "batch_tokens": 1,
            },
        },
    )
}
VERTEX: Examples = {
    "an embedding model": Example({"instances": [{"inputs": FOOD}]}, {"predictions": [[VECTOR]]})
}
KSERVE_SERVER: Examples = {
    "this server": Example(
        None, {"name": "gpu-server", "version": __version__, "extensions": ["binary_tensor_data"]}
    )
}
KSERVE_LIVE: Examples = {"alive": Example(None, {"live": True})}
KSERVE_READY: Examples = {"ready": Example(None, {"ready": True})}
KSERVE_MODEL_READY: Examples = {"ready": Example(None, {"name": CUSTOM, "ready": True})}
KSERVE_MODEL: Examples = {
    "a model": Example(
        None,
        {
            "name": CUSTOM,
            "versions": ["1"],
            "platform": "gpu-server",
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [-1, 8]},
                {"name": "nonce", "datatype": "INT64", "shape": [-1]},
            ],
            "outputs": [],
        },
    )
}
KSERVE_INFER: Examples = {
    "an item": Example(
        {
            "id": "42",
            "inputs": [
                {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6, 7, 8]},
                {"name": "nonce", "shape": [1], "datatype": "INT64", "data": [17]},
            ],
        },
        {
            "id": "42",
            "model_name": CUSTOM,
            "model_version": "1",
            "outputs": [
                {"name": "y", "shape": [1, 4], "datatype": "FP32", "data": [0.31, -0.02, 0.77, 1.4]},
                {"name": "nonce", "shape": [1], "datatype": "INT64", "data": [17]},
            ],
        },
    )
}
WATCHED: Examples = {
    "no point yet": Example(
        None,
        {
            "state": "ready",
            "phase": "",
            "progress": 1.0,
            "uptime_s": 0.4,
            "version": __version__,
            "models": [EMBEDDER],
            "devices": [],
            "memory": [],
            "gpus": [],
            "points": [],
        },
    )
}
ALIVE: Examples = {"alive": Example(None, {"status": "ok"})}
READY: Examples = {"ready": Example(None, {"state": "ready", "phase": "", "progress": 1.0})}
