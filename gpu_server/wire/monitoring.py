"""Structs of what is watched: memory and GPUs in `status`, the points of `history`, and a web worker's `report`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

SECONDS = tuple(1e-4 * 2**k for k in range(18))
"""Bucket bounds of latencies: 0.1 ms to 13 s."""
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Label = Annotated[str, Meta(max_length=256)]


class ModelMemory(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes that one model was seen to take: its weights, what warming up left, and a batch's activations at most."""

    name: str
    weights: int = 0
    warm_up: int = 0
    activations: int = 0


class EngineMemory(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes on one engine's device: what it holds, what it may hold, and what is left. gpu: the UUID of a GPU."""

    allocated: int = 0
    reserved: int = 0
    peak: int = 0
    limit: int = 0
    free: int = 0
    total: int = 0
    gpu: str = ""
    models: tuple[ModelMemory, ...] = ()

    @property
    def left(self) -> int:
        """What the engine can still take."""
        return max(0, min(self.limit - self.reserved, self.free))


class GPUStatus(msgspec.Struct, kw_only=True):
    """One GPU as NVML sees it: bytes, a utilization of 0 to 1, watts and degrees Celsius."""

    uuid: str
    name: str = ""
    memory_total: int = 0
    memory_used: int = 0
    utilization: float = 0.0
    power_w: float = 0.0
    temperature_c: int = 0


class WebStatus(msgspec.Struct, kw_only=True, frozen=True):
    """The web workers that are connected and have reported, and the HTTP requests in them."""

    workers: int = 0
    in_flight: int = 0


class Point(msgspec.Struct, kw_only=True):
    """About one second of service; latencies of the requests answered in it, everything else at its end.

    number: from 1 on. at: Unix time. requests, items, tokens, failures, batches: a second. batch_items: their mean.
    busy: part of the time in which a forward ran. memory: bytes the engines hold. gpu_*: over all GPUs.
    """

    number: int
    at: float
    requests: float = 0.0
    items: float = 0.0
    tokens: float = 0.0
    failures: float = 0.0
    batches: float = 0.0
    batch_items: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    queue_p99_ms: float = 0.0
    queue_items: int = 0
    in_flight: int = 0
    busy: float = 0.0
    memory: int = 0
    memory_limit: int = 0
    gpu_memory: int = 0
    gpu_utilization: float = 0.0
    gpu_power_w: float = 0.0
    workers: int = 0
    http_in_flight: int = 0


class History(msgspec.Struct, kw_only=True):
    """The points after the one that was asked for, oldest first."""

    state: str
    every_s: float
    points: tuple[Point, ...]


class Buckets(msgspec.Struct, forbid_unknown_fields=True):
    """A histogram's counts by bucket (bounds as the daemon's latencies have) and the sum of its values in seconds."""

    counts: Annotated[tuple[Count, ...], Meta(min_length=len(SECONDS) + 1, max_length=len(SECONDS) + 1)]
    total: Seconds


class RouteReport(msgspec.Struct, forbid_unknown_fields=True):
    """One route of a web worker: requests by status, and their time."""

    statuses: Annotated[dict[Annotated[str, Meta(pattern=r"^[1-5][0-9][0-9]\Z")], Count], Meta(max_length=64)]
    duration: Buckets


class Report(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a web worker has counted since its report of the number before.

    worker: made anew in each process. A report that was not answered is sent again under its number.
    """

    worker: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    number: Annotated[int, Meta(ge=1)]
    in_flight: Count = 0
    routes: Annotated[dict[Label, RouteReport], Meta(max_length=256)] = {}
    tokenize: Annotated[dict[Label, Buckets], Meta(max_length=256)] = {}


# Made at import: msgspec looks into a type on its first use, and two threads that do so at once end the process.
_encode = msgspec.json.Encoder().encode
_decode_history = msgspec.json.Decoder(History).decode
_decode_report = msgspec.json.Decoder(Report).decode


def to_json(document: History | Report) -> bytes:
    """Encode as UTF-8 JSON."""
    return _encode(document)


def history_from_json(data: bytes | str) -> History:
    """Decode a history; raises msgspec.DecodeError."""
    return _decode_history(data)


def report_from_json(data: bytes | str) -> Report:
    """Decode a report strictly; raises msgspec.DecodeError."""
    return _decode_report(data)
