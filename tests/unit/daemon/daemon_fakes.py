"""A clock, requests and an engine link for tests of the daemon's parts, without processes or sockets."""

from __future__ import annotations

import itertools
from typing import Any, cast

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.request import Batch, Request
from gpu_server.wire import ReplyHeader, Tensor, Tensors, Timing
from gpu_server.wire.documents import EngineStatus, ModelInfo
from gpu_server.wire.events import Event
from gpu_server.wire.monitoring import GPUStatus

_ids = itertools.count(1)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_request(
    *costs: int,
    model: str = "m",
    priority: int = 1,
    params: dict[str, Any] | None = None,
    inputs: Tensors | None = None,
    peer: bytes = b"peer",
    arrived: float = 1000.0,
    deadline: float = 2000.0,
) -> Request:
    """A request of items with these costs; its default input is one byte an item."""
    return Request(
        peer=peer,
        id=next(_ids).to_bytes(4, "little"),
        model=model,
        inputs=inputs or {"x": Tensor("u8", (len(costs),), bytes(len(costs)))},
        params=params or {},
        cumulative=[0, *itertools.accumulate(costs)],
        priority=priority,
        arrived=arrived,
        deadline=deadline,
        group=(model, *sorted((params or {}).items())),
    )


def slices(batch: Batch | None) -> list[tuple[Request, int, int]]:
    """What a batch holds; fails on None."""
    assert batch is not None
    return batch.slices


class FakeLink:
    """An engine that does what the test says."""

    def __init__(self, *models: ModelInfo, pid: int = 1) -> None:
        self.models = {m.name: m for m in models}
        self.tokenizers: dict[str, bytes] = {}
        self.batches: dict[bytes, Batch] = {}
        self.generation = 0
        self.sent: list[Batch] = []
        self.state = "loading"
        self.event = Event(kind="progress", phase="loading m", progress=0.5)
        self.heard = 1000.0
        self.pid = pid
        self.code: int | None = None
        self.calls: list[str] = []
        self.gpu: GPUStatus | None = None
        self.dies_at_once = True
        self.ends_when_killed = True
        self.inputs: dict[int, Tensors] = {}

    def send(self, batch: Batch) -> None:
        self.sent.append(batch)
        self.inputs[batch.id] = batch.inputs()
        self.batches[batch.id.to_bytes(8, "little")] = batch

    def pop(self) -> Batch:
        """The oldest batch, as if its answer had come."""
        return self.batches.pop(next(iter(self.batches)))

    def poll_pipe(self) -> None:
        self.calls.append("poll")

    def kill(self) -> None:
        self.calls.append("kill")
        if self.ends_when_killed:
            self.state, self.code = "dead", -9

    def busy_since(self) -> float:
        return next(iter(self.batches.values())).sent if self.batches else float("inf")

    def reap(self) -> bool:
        self.calls.append("reap")
        return self.dies_at_once

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")

    def exit_code(self) -> int | None:
        return self.code

    def why_ended(self) -> str:
        return EngineLink.why_ended(cast(EngineLink, self))

    def status(self, restarts: int, state: Any = "loading") -> EngineStatus:
        return EngineStatus(
            pid=self.pid, device="cpu", state=state, restarts=restarts, in_flight=len(self.batches)
        )


def engine_reply(compute_us: int = 1000, **fields: Any) -> ReplyHeader:
    """Header of an engine's answer."""
    return ReplyHeader(v=1, id=b"-", timing=Timing(compute_us=compute_us), **fields)
