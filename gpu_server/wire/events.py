"""What the engine process tells its daemon over their pipe: its start, its memory, its GPU. MessagePack, like all else."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpu_server.wire.documents import ModelInfo
from gpu_server.wire.monitoring import EngineMemory, GPUStatus


class Event(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One step of an engine's life.

    `progress` says what it is doing (`phase`, done part 0–1), `ready` brings the models, `failed` an error message and
    the exit code that fits it; `permanent` means that starting again cannot help. fault: what failed where the model is
    not to blame: the device itself, or the room in its memory.
    """

    kind: Literal["progress", "ready", "failed", "memory", "gpu"]
    phase: str = ""
    progress: float = 0.0
    device: str = ""
    models: tuple[ModelInfo, ...] = ()
    message: str = ""
    exit_code: int = 0
    permanent: bool = False
    fault: Literal["", "device", "memory"] = ""
    memory: EngineMemory = EngineMemory()
    gpu: GPUStatus | None = None


class EngineSpec(msgspec.Struct, kw_only=True):
    """What the daemon tells a new engine: what to load, and how. gentle: another engine serves meanwhile."""

    device: str
    threads: int
    max_memory_mb: int
    max_batch_tokens: int
    max_batch_items: int
    batches_in_flight: int
    max_batch_bytes: int
    graphs: bool
    compiled: bool
    fused: bool
    log_level: str
    log_format: str
    models: tuple[ModelSpec, ...]
    gentle: bool = False
    packed: bool = True


class ModelSpec(msgspec.Struct, kw_only=True):
    """One model to load; empty and zero mean the model's own setting."""

    name: str
    source: str
    revision: str = ""
    dtype: str = "auto"
    pooling: str = ""
    max_length: int = 0
    max_batch_tokens: int = 0
    max_batch_items: int = 0


_pack = msgspec.msgpack.Encoder().encode
_unpack_event = msgspec.msgpack.Decoder(Event).decode
_unpack_spec = msgspec.msgpack.Decoder(EngineSpec).decode


def pack(value: Event | EngineSpec) -> bytes:
    """Encode an event or a spec."""
    return _pack(value)


def unpack_event(data: bytes) -> Event:
    """Decode an event; raises msgspec.DecodeError."""
    return _unpack_event(data)


def unpack_spec(data: bytes) -> EngineSpec:
    """Decode a spec; raises msgspec.DecodeError."""
    return _unpack_spec(data)
