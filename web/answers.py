"""Answers as typed structs: they are the schema of what the routes send, and tests hold real answers against them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gpu_server.wire import ItemError
from gpu_server.wire.monitoring import GPUStatus, ModelMemory, Point
from web.schemas import KServeParameters, KServeType

Base64 = Annotated[str, Meta(description="little-endian float32 numbers as base64")]
Index = Annotated[int, Meta(ge=0, description="place in the request, from 0")]
Probability = Annotated[float, Meta(description="a probability, or with raw_scores a logit")]
Count = Annotated[int, Meta(ge=0)]

Vector = list[float]
Vectors = list[Vector]
TokenVectors = list[Vectors]


class SparseValue(msgspec.Struct):
    """One number of a sparse vector that is not zero."""

    index: Annotated[int, Meta(ge=0, description="token id")]
    value: float


class Prediction(msgspec.Struct):
    """A label and its score."""

    score: Probability
    label: str


class Ranked(msgspec.Struct, omit_defaults=True):
    """One of the texts, with its score for the query."""

    index: Index
    score: Probability
    text: Annotated[str, Meta(description="there with return_text")] | None = None


class RankedDocument(msgspec.Struct):
    """The text of a document."""

    text: str


class RankedResult(msgspec.Struct, omit_defaults=True):
    """One of the documents, with its relevance to the query."""

    index: Index
    relevance_score: Probability
    document: RankedDocument | None = None


class TotalUsage(msgspec.Struct):
    """Tokens of a request."""

    total_tokens: Count


class Usage(msgspec.Struct):
    """Tokens of a request, as OpenAI counts them."""

    prompt_tokens: Count
    total_tokens: Count


class ApiVersion(msgspec.Struct):
    """The version of Cohere's API."""

    version: str


class BilledUnits(msgspec.Struct):
    """What Cohere would count."""

    search_units: Count


class RankMeta(msgspec.Struct):
    """What Cohere's clients expect beside the results."""

    api_version: ApiVersion
    billed_units: BilledUnits


class RankAnswer(msgspec.Struct):
    """Documents by relevance, the best first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: TotalUsage
    meta: RankMeta


class PairScore(msgspec.Struct):
    """The score of one pair."""

    index: Index
    object: Literal["score"]
    score: float


class ScoreAnswer(msgspec.Struct):
    """Scores of pairs, in the order of the request."""

    id: str
    object: Literal["list"]
    created: Annotated[int, Meta(description="seconds since 1970")]
    model: str
    data: list[PairScore]
    usage: Usage


class TextClass(msgspec.Struct):
    """The likeliest label of one text, and the probability of each label."""

    index: Index
    label: str
    probs: Vector
    num_classes: Annotated[int, Meta(ge=1)]


class ClassifyAnswer(msgspec.Struct):
    """Labels of texts, in the order of the request."""

    id: str
    object: Literal["list"]
    created: Annotated[int, Meta(description="seconds since 1970")]
    model: str
    data: list[TextClass]
    usage: Usage


class Entity(msgspec.Struct):
    """Neighbouring tokens of one kind; `start` and `end` count characters."""

    entity_group: str
    score: float
    word: str
    start: Count
    end: Count


class LabelledToken(msgspec.Struct):
    """One token with its label, as aggregation_strategy `none` answers; `start` and `end` count characters."""

    entity: str
    score: float
    index: Annotated[int, Meta(ge=0, description="place among the text's tokens")]
    word: str
    start: Count
    end: Count


class Token(msgspec.Struct):
    """One token; special ones stand nowhere in the text."""

    id: Count
    text: str
    special: bool
    start: Count | None
    stop: Count | None


class Embedding(msgspec.Struct):
    """The vector of one input."""

    object: Literal["embedding"]
    index: Index
    embedding: Vector | Base64


class EmbeddingsAnswer(msgspec.Struct):
    """Vectors in the order of the request."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(msgspec.Struct):
    """A served model, as OpenAI lists it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct):
    """The served models, the default first."""

    object: Literal["list"]
    data: list[ModelCard]


class Predictions(msgspec.Struct):
    """For each instance what the model's own route would answer."""

    predictions: list[Any]


class Info(msgspec.Struct):
    """Facts of a model, as TEI tells them."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: Annotated[dict[str, dict[str, Any]], Meta(description="one key, the kind, with facts of it")]
    max_concurrent_requests: Count
    max_input_length: Count
    max_batch_tokens: Count
    max_batch_requests: Count | None
    max_client_batch_size: Count
    auto_truncate: bool
    tokenization_workers: Count
    version: str
    sha: str | None
    docker_label: str | None


class InferTiming(msgspec.Struct):
    """Where the time went, in microseconds, and the largest batch that the request rode in."""

    queue_us: Count
    compute_us: Count
    total_us: Count
    batch_items: Count
    batch_tokens: Count


class InferAnswer(msgspec.Struct):
    """Outputs by name, with one entry per item; rows of failed items are zero or empty."""

    model: str
    version: str
    outputs: dict[str, list[Any]]
    item_errors: list[ItemError]
    timing: InferTiming


class PackedOutput(msgspec.Struct, omit_defaults=True):
    """An output in MessagePack; items of unequal length lie end to end, and begin at `offsets`."""

    dtype: str
    shape: list[int]
    data: bytes | list[Any]
    offsets: list[int] | None = None


class PackedInferAnswer(msgspec.Struct):
    """As InferAnswer, in MessagePack."""

    model: str
    version: str
    outputs: dict[str, PackedOutput]
    item_errors: list[ItemError]
    timing: InferTiming


class KServeServer(msgspec.Struct):
    """The server's name, version and extensions."""

    name: str
    version: str
    extensions: list[str]


class KServeTensor(msgspec.Struct):
    """What is known of a tensor before a request: −1 where a dimension may have any length."""

    name: str
    datatype: KServeType
    shape: list[int]


class KServeModel(msgspec.Struct):
    """A model's metadata."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[KServeTensor]
    outputs: list[KServeTensor]


class KServeOutputData(msgspec.Struct, omit_defaults=True):
    """One output; without `data` its bytes follow the JSON, as many as its parameter binary_data_size says."""

    name: str
    shape: list[int]
    datatype: KServeType
    parameters: KServeParameters = {}
    data: list[Any] | None = None


class KServeInferAnswer(msgspec.Struct, omit_defaults=True):
    """The outputs of a model; `id` is the request's."""

    model_name: str
    model_version: str
    outputs: list[KServeOutputData]
    id: str | None = None


class Live(msgspec.Struct):
    """The worker answers."""

    live: bool


class Ready(msgspec.Struct):
    """Whether every model would be served."""

    ready: bool


class ModelReady(msgspec.Struct):
    """Whether a model would be served."""

    name: str
    ready: bool


class Alive(msgspec.Struct):
    """The worker answers."""

    status: Literal["ok"]


class ReadyState(msgspec.Struct, omit_defaults=True):
    """The daemon's state, and how far the load is."""

    state: str
    phase: str
    progress: Annotated[float, Meta(ge=0, le=1)]
    error: str | None = None


class Watched(msgspec.Struct):
    """The daemon's state, and the latest points of its history."""

    state: str
    phase: str
    progress: float
    uptime_s: float
    version: str
    models: list[str]
    devices: list[str]
    memory: list[ModelMemory]
    gpus: list[GPUStatus]
    points: list[Point]


class TeiError(msgspec.Struct):
    """An error as TEI's clients read it."""

    error: Annotated[str, Meta(description="what is wrong; names the field and the limit")]
    error_type: Literal[
        "Unhealthy", "Backend", "Overloaded", "Validation", "Empty", "Unauthorized", "Timeout"
    ]


class OpenAIErrorFacts(msgspec.Struct):
    """What is wrong, of what type, in which field, with the protocol's code."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIError(msgspec.Struct):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorFacts


class CohereError(msgspec.Struct):
    """An error as Cohere's clients read it."""

    id: Annotated[str, Meta(description="the request's id")]
    message: str


class KServeError(msgspec.Struct):
    """An error of the Open Inference Protocol."""

    error: str
