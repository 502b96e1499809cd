"""The JSON documents that `hello` and `status` answer, as typed structs (proto/schema/hello.json, status.json)."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from gpu_server.wire.limits import Limits
from gpu_server.wire.monitoring import EngineMemory, GPUStatus, WebStatus

Kind = Literal["embedding", "sparse", "reranker", "classifier", "token_classifier", "custom"]
Activation = Literal["", "softmax", "sigmoid", "identity"]
PAIR_KINDS: frozenset[Kind] = frozenset({"reranker", "classifier"})
"""What takes pairs of texts."""
State = Literal["starting", "loading", "ready", "degraded", "draining", "stopping", "failed"]


class InputInfo(msgspec.Struct, omit_defaults=True):
    """One declared input, or an output: dtype and the dimensions of one item (−1 where an item may have any length)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


class TextInfo(msgspec.Struct, omit_defaults=True):
    """What a client needs to tokenise for a text model.

    prompt_lengths: tokens of each prompt, for models that pool without them. truncation_direction: the side on which
    over-long texts are cut unless a request says otherwise. hidden_size: numbers in the vector of a token; 0 if unknown.
    """

    digest: str
    max_length: int
    vocab_size: int
    prompts: dict[str, str] = {}
    default_prompt: str = ""
    prompt_lengths: dict[str, int] = {}
    truncation_direction: Literal["left", "right"] = "right"
    hidden_size: int = 0


class ModelInfo(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Facts of one served model, stated by the engine once it is loaded.

    outputs: what parameter `output` may be, where there is one. output_tensors: what it answered when it was warmed up.
    graphs: sizes in tokens, ascending; a batch takes as long as the smallest that holds it.
    """

    name: str
    version: str = ""
    kind: Kind = "custom"
    source: str = ""
    device: str = ""
    dtype: str = ""
    inputs: tuple[InputInfo, ...] = ()
    params: dict[str, bool | int | float | str | None] = {}
    cost: int | str = 1
    padded: bool = False
    max_batch_tokens: int = 16384
    max_batch_items: int = 512
    text: TextInfo | None = None
    dimensions: int = 0
    pooling: str = ""
    normalize: bool = False
    runs: str = ""
    graphs: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    activation: Activation = ""
    outputs: tuple[str, ...] = ()
    output_tensors: tuple[InputInfo, ...] = ()


def answers_to(info: ModelInfo, name: str) -> bool:
    """Whether a model is meant by `name`: its own name, or what follows the last «/» of it."""
    return name in (info.name, info.name.rpartition("/")[2])


class Hello(msgspec.Struct, kw_only=True):
    """What a client learns first: versions, limits and models."""

    server: str = "gpu-server"
    version: str
    versions: tuple[int, ...] = (1,)
    state: State
    limits: Limits
    default_deadline_ms: int
    models: tuple[ModelInfo, ...]


class EngineStatus(msgspec.Struct, kw_only=True):
    """One engine process: who it is, what it does, how often it was respawned."""

    pid: int
    device: str
    state: Literal["starting", "loading", "warming", "ready", "backoff", "failed", "stopping"]
    phase: str = ""
    progress: float = 0.0
    restarts: int = 0
    in_flight: int = 0
    error: str = ""
    memory: EngineMemory = EngineMemory()


class QueueStatus(msgspec.Struct, kw_only=True):
    """What waits: requests, items, tokens and bytes."""

    requests: int = 0
    items: int = 0
    tokens: int = 0
    bytes: int = 0


class Status(msgspec.Struct, kw_only=True):
    """The daemon at one moment."""

    server: str = "gpu-server"
    version: str
    pid: int
    endpoint: str
    state: State
    phase: str = ""
    progress: float = 0.0
    uptime_s: float = 0.0
    engines: tuple[EngineStatus, ...] = ()
    models: tuple[ModelInfo, ...] = ()
    queue: QueueStatus
    counters: dict[str, int] = {}
    gpus: tuple[GPUStatus, ...] = ()
    web: WebStatus = WebStatus()


Document = TypeVar("Document", Hello, Status, ModelInfo)

# Made at import: msgspec looks into a type on its first use, and two threads that do so at once end the process.
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Hello, Status, ModelInfo)
}


def to_json(document: Hello | Status | ModelInfo) -> bytes:
    """Encode a document as UTF-8 JSON."""
    return msgspec.json.encode(document)


def from_json(kind: type[Document], data: bytes | str) -> Document:
    """Decode a document of `kind`; raises msgspec.DecodeError."""
    decoded: Document = _DECODERS[kind].decode(data)
    return decoded
