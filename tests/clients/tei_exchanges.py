"""What TEI answers (v1.9.3, commit 0d124dc): status, kind of body and headers of each exchange.

A shape is JSON with values replaced by their kind: "text", "number", "flag", None, [shape of each element], {key: shape};
a string that begins with "=" is that very text. EMPTY is no body, PLAIN a body that is not JSON, ANY any JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ANY = "any"
EMPTY = "empty"
PLAIN = "plain"
TIMES = (
    "x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens",
    "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time",
)  # fmt: skip
QUERY = "What do people eat?"
DOCUMENTS = ["A man is eating food.", "The night sky is full of stars."]
LONG = "word " * 600
VECTORS = [["number"]]
LABELLED = {"score": "number", "label": "text"}
RANKED = {"index": "number", "score": "number"}
TOKEN = {"id": "number", "text": "text", "special": "flag", "start": "number?", "stop": "number?"}
OPENAI = {
    "object": "=list",
    "data": [{"object": "=embedding", "embedding": ["number"], "index": "number"}],
    "model": "text",
    "usage": {"prompt_tokens": "number", "total_tokens": "number"},
}
INFO = {
    "model_id": "text", "model_sha": "text?", "model_dtype": "text", "served_model_name": "text",
    "model_type": {"embedding": {"pooling": "text"}}, "max_concurrent_requests": "number", "max_input_length": "number",
    "max_batch_tokens": "number", "max_batch_requests": "number?", "max_client_batch_size": "number",
    "auto_truncate": "flag", "tokenization_workers": "number", "version": "text", "sha": "text?",
    "docker_label": "text?",
}  # fmt: skip


def error(kind: str) -> dict[str, str]:
    """The body of a native error."""
    return {"error": "text", "error_type": f"={kind}"}


@dataclass(frozen=True)
class Exchange:
    """A request and TEI's answer. A body of bytes is sent as it is.

    model: the kind that TEI had loaded, where the first of ours that fits the route would be another.
    """

    name: str
    path: str
    body: Any = None
    status: int = 200
    shape: Any = EMPTY
    method: str = "POST"
    model: str = ""
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()


def native(name: str, path: str, body: Any, shape: Any) -> Exchange:
    """A good answer with TEI's timing headers."""
    return Exchange(name, path, body, shape=shape, headers=TIMES)


def refused(name: str, path: str, body: Any, status: int, shape: Any, **more: Any) -> Exchange:
    """An error."""
    return Exchange(name, path, body, status, shape, **more)


EXCHANGES = [
    Exchange("health", "/health", method="GET"),
    Exchange("health at the root", "/", method="GET"),
    Exchange("ping", "/ping", method="GET"),
    Exchange("info", "/info", shape=INFO, method="GET"),
    Exchange("metrics", "/metrics", shape=PLAIN, method="GET"),
    Exchange("openapi", "/api-doc/openapi.json", shape=ANY, method="GET"),
    Exchange("docs", "/docs", shape=PLAIN, method="GET"),
    native("embed a text", "/embed", {"inputs": "x"}, VECTORS),
    native("embed texts", "/embed", {"inputs": DOCUMENTS}, VECTORS),
    native("embed ids", "/embed", {"inputs": [101, 1060, 102]}, VECTORS),
    native("embed texts and ids", "/embed", {"inputs": ["x", [101, 1060, 102]]}, VECTORS),
    native("embed with every field", "/embed", {
        "inputs": "x", "truncate": True, "truncation_direction": "Left", "prompt_name": None, "normalize": False,
        "dimensions": 16,
    }, VECTORS),
    native("embed with unknown fields", "/embed", {"inputs": "x", "parameters": {}, "more": 1}, VECTORS),
    native("embed too long a text", "/embed", {"inputs": LONG}, VECTORS),
    native("embed as the root", "/", {"inputs": "x"}, VECTORS),
    native("embed for SageMaker", "/invocations", {"inputs": "x"}, VECTORS),
    native("embed all", "/embed_all", {"inputs": DOCUMENTS}, [[["number"]]]),
    native("embed sparse", "/embed_sparse", {"inputs": DOCUMENTS}, [[{"index": "number", "value": "number"}]]),
    native("predict a text", "/predict", {"inputs": "x"}, [LABELLED]),
    native("predict a pair", "/predict", {"inputs": ["x", "y"]}, [LABELLED]),
    native("predict a batch", "/predict", {"inputs": [["x"], ["y", "z"]]}, [[LABELLED]]),
    native("predict raw scores", "/predict", {"inputs": "x", "raw_scores": True}, [LABELLED]),
    native("rerank", "/rerank", {"query": QUERY, "texts": DOCUMENTS}, [RANKED]),
    native("rerank with texts", "/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True},
           [RANKED | {"text": "text"}]),
    native("similarity", "/similarity", {"inputs": {"source_sentence": "x", "sentences": DOCUMENTS}, "parameters": {}},
           ["number"]),
    Exchange("tokenize", "/tokenize", {"inputs": "x y"}, shape=[[TOKEN]]),
    Exchange("tokenize a batch", "/tokenize", {"inputs": DOCUMENTS, "add_special_tokens": False}, shape=[[TOKEN]]),
    Exchange("decode", "/decode", {"ids": [101, 1060, 102]}, shape=["text"]),
    Exchange("decode a batch", "/decode", {"ids": [[101], [1060]], "skip_special_tokens": False}, shape=["text"]),
    native("openai", "/v1/embeddings", {"input": "x", "model": "all-MiniLM-L6-v2", "user": "u"}, OPENAI),
    native("openai, another model's name", "/v1/embeddings", {"input": "x", "model": "text-embedding-3-small"}, OPENAI),
    native("openai, the other path", "/embeddings", {"input": ["x", "y"]}, OPENAI),
    native("openai, base64", "/v1/embeddings", {"input": "x", "encoding_format": "base64"},
           OPENAI | {"data": [OPENAI["data"][0] | {"embedding": "text"}]}),
    Exchange("vertex", "/vertex", {"instances": [{"inputs": "x"}]}, shape={"predictions": [VECTORS]}),
    refused("an empty text", "/embed", {"inputs": ""}, 400, error("Empty")),
    refused("no texts", "/embed", {"inputs": []}, 400, error("Empty")),
    refused("no texts to rank", "/rerank", {"query": "x", "texts": []}, 400, error("Empty"), model="reranker"),
    refused("too long and not to be cut", "/embed", {"inputs": LONG, "truncate": False}, 422, error("Validation")),
    refused("too many dimensions", "/embed", {"inputs": "x", "dimensions": 100_000}, 422, error("Validation")),
    refused("no dimensions", "/embed", {"inputs": "x", "dimensions": 0}, 422, error("Validation")),
    refused("an unknown prompt", "/embed", {"inputs": "x", "prompt_name": "nope"}, 422, error("Validation")),
    refused("more texts than a client may send", "/embed", {"inputs": ["x"] * 33}, 422, error("Validation")),
    refused("predict with an embedding model", "/predict", {"inputs": "x"}, 424, error("Backend"), model="embedding"),
    refused("embed with a reranker", "/embed", {"inputs": "x"}, 424, error("Backend"), model="reranker"),
    refused("sparse of a dense model", "/embed_sparse", {"inputs": "x"}, 424, error("Backend"), model="embedding"),
    refused("three texts where a pair is", "/predict", {"inputs": ["x", "y", "z"]}, 422, PLAIN, model="classifier"),
    refused("openai, an empty text", "/v1/embeddings", {"input": ""}, 400,
            {"message": "text", "code": "number", "type": "=Empty"}),
    refused("a wrong type", "/embed", {"inputs": {}}, 422, PLAIN),
    refused("a missing field", "/embed", {}, 422, PLAIN),
    refused("broken JSON", "/embed", b'{"inputs": ', 400, PLAIN),
    refused("no content type", "/embed", b'{"inputs": "x"}', 415, PLAIN, content_type=""),
    refused("another content type", "/embed", b'{"inputs": "x"}', 415, PLAIN, content_type="text/plain"),
    refused("too large a body", "/embed", {"inputs": "x" * 9_000_000}, 413, PLAIN),
    refused("a wrong method", "/embed", None, 405, EMPTY, method="GET"),
    refused("no such route", "/nope", {"inputs": "x"}, 404, EMPTY),
]  # fmt: skip
