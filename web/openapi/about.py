"""`About`: what the OpenAPI document says of a handler and the routing table does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

Tag = Literal["TEI", "OpenAI", "rerank", "KServe", "generic", "health", "docs"]
TAGS: dict[Tag, str] = {
    "TEI": "The routes of Hugging Face's Text-Embeddings-Inference, for its clients as they are.",
    "OpenAI": "Embeddings and models, for OpenAI's clients as they are.",
    "rerank": "Reranking, scoring and classifying, as Cohere, Jina and vLLM do it.",
    "KServe": "The Open Inference Protocol (KServe v2, Triton's HTTP) with its binary tensor extension.",
    "generic": "Any model, your own too: named inputs to named outputs.",
    "health": "What orchestrators and operators ask; none of it queues behind work.",
    "docs": "This description.",
}


class Example(NamedTuple):
    """A request's JSON body, None where there is none, and an answer of the same shape as the real one."""

    body: Any
    answer: Any


@dataclass(frozen=True, kw_only=True)
class About:
    """One handler, whatever the paths that lead to it.

    answers: types of its good JSON answers. takes, gives: schemas, or types, of other bodies and answers, by content type.
    headers: what it reads of the request's. query: schemas of what it reads of the URL.
    failures: statuses of errors besides those that the route itself tells; unready: the type of a 503 that is no error.
    model: a model's name for the path of the examples. measured: whether its answer has TEI's x-compute-* headers.
    """

    tag: Tag
    answers: tuple[Any, ...] = ()
    examples: Mapping[str, Example] = field(default_factory=dict)
    takes: Mapping[str, Any] = field(default_factory=dict)
    gives: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[int, ...] = (503, 504)
    unready: type[msgspec.Struct] | None = None
    model: str = ""
    measured: bool = False
