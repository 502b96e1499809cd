"""One accepted request: what it asks, which of its items still wait, and the answers that have come so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gpu_server.errors import Cancelled, ModelFailed, RemoteError
from gpu_server.wire import ItemError, Tensor, Tensors, Timing

Group = tuple[Any, ...]
"""What requests must share to ride in one batch: model, parameters and, where it may vary, each input's signature."""


class Request(msgspec.Struct, kw_only=True, eq=False):
    """State of one request between admission and its single reply; a Struct, because one is made for every message.

    cumulative: the sums, from 0 on, of what each item adds to a batch. deadline, arrived: seconds on the daemon's
    clock. size: bytes of input. waiting: ranges of items not yet in a batch. closed: the reply has been made, whatever it
    was. suspect: it was in a batch that the engine did not survive, or holds what failed before, and rides alone. flow, tag,
    bulk: its place in the order of requests (`flows`).
    """

    peer: bytes
    id: bytes
    model: str
    inputs: Tensors
    params: dict[str, Any]
    cumulative: Sequence[int]
    priority: int
    arrived: float
    deadline: float
    group: Group
    items: int = 0
    cost: int = 0
    size: int = 0
    waiting: list[tuple[int, int]] = []
    remaining: int = 0
    parts: list[tuple[int, int, Tensors]] = []
    item_errors: list[ItemError] = []
    tag: float = 0.0
    attempts: int = 0
    bulk: bool = False
    flow: tuple[object, ...] = ()
    suspect: bool = False
    closed: bool = False
    traceparent: str = ""
    queue_us: int = 0
    compute_us: int = 0
    batch_items: int = 0
    batch_tokens: int = 0

    def __post_init__(self) -> None:
        items = self.items = self.remaining = len(self.cumulative) - 1
        self.cost = self.cumulative[items]
        self.size = sum([len(tensor.data) for tensor in self.inputs.values()])
        self.waiting = [(0, items)]

    def release(self) -> None:
        """Let go of what it holds: it has its reply, but may stand in a queue until its deadline."""
        self.inputs = {}
        self.parts = []
        self.cumulative = ()

    def isolate(self) -> None:
        """Let it share no batch with another request."""
        self.suspect = True
        self.group = (*self.group, self.peer, self.id)

    def restart(self) -> None:
        """Forget every answer so far: all items wait again."""
        self.waiting = [(0, self.items)]
        self.remaining = self.items
        self.parts = []
        self.item_errors = []
        self.compute_us = self.batch_items = self.batch_tokens = 0

    def waiting_items(self) -> int:
        """Items not yet in a batch."""
        return sum(stop - start for start, stop in self.waiting)

    def waiting_cost(self) -> int:
        """Cost of the items not yet in a batch."""
        cumulative = self.cumulative
        return sum(cumulative[stop] - cumulative[start] for start, stop in self.waiting)

    def ran_in(self, batch: Batch, compute_us: int) -> None:
        """Note a batch that some of the items rode in."""
        self.compute_us += compute_us
        if batch.items > self.batch_items:
            self.batch_items, self.batch_tokens = batch.items, batch.cost

    def note_errors(self, errors: Iterable[ItemError]) -> None:
        """Keep errors of single items; what was not told apart even with this request alone is the model's failure."""
        self.item_errors += [
            ItemError(e.item, ModelFailed.code if e.code == Cancelled.code else e.code, e.message)
            for e in errors
        ]

    def take(self, start: int, outputs: Tensors, items: int) -> bool:
        """Keep the outputs of `items` items from `start` on; True when every item has its answer."""
        self.remaining -= items
        if self.remaining:
            # Until the others come, of a batch's answer just this part.
            outputs = {name: tensor.copy() for name, tensor in outputs.items()}
        self.parts.append((start, items, outputs))
        return self.remaining == 0

    def taken_bytes(self) -> int:
        """Bytes of the outputs so far."""
        return sum([len(tensor.data) for *_, outputs in self.parts for tensor in outputs.values()])

    def fail(self, start: int, items: int, error: RemoteError) -> bool:
        """Keep an error for `items` items from `start` on; True when every item has its answer."""
        self.item_errors += [
            ItemError(item, error.code, error.message) for item in range(start, start + items)
        ]
        return self.take(start, {}, items)

    def outputs(self) -> Tensors:
        """The outputs of all items in order, failed ones blank; {} if none has any.

        Raises ValueError when batches gave outputs that do not fit together.
        """
        if len(self.parts) == 1:
            return self.parts[0][2]
        self.parts.sort(key=lambda part: part[0])
        whole: Tensors = {}
        for name, first in next((outputs for *_, outputs in self.parts if outputs), {}).items():
            column = [
                outputs.get(name) if outputs else Tensor.zeros(first.signature, items)
                for _, items, outputs in self.parts
            ]
            if any(t is None or t.signature != first.signature for t in column):
                raise ValueError(f"output {name!r} differs in type or shape between batches")
            whole[name] = Tensor.concat([t for t in column if t is not None])
        return whole

    def timing(self, now: float) -> Timing:
        """Where this request's time went, up to `now`."""
        total_us = int((now - self.arrived) * 1e6)
        return Timing(self.queue_us, self.compute_us, total_us, self.batch_items, self.batch_tokens)


class Batch:
    """What one forward runs: slices of requests of one group, in order.

    waited_since: when its first request arrived. version: of the model; generation: of the engine; both once it is sent.
    """

    __slots__ = (
        "cost",
        "formed",
        "generation",
        "id",
        "items",
        "model",
        "params",
        "sent",
        "slices",
        "version",
        "waited_since",
    )

    def __init__(self, batch_id: int, model: str, params: dict[str, Any], formed: float) -> None:
        self.id = batch_id
        self.model = model
        self.params = params
        self.waited_since = self.formed = self.sent = formed
        self.version = ""
        self.generation = 0
        self.slices: list[tuple[Request, int, int]] = []
        self.cost = 0
        self.items = 0

    @property
    def suspect(self) -> bool:
        """Whether its request was in a batch that the engine did not survive."""
        return self.slices[0][0].suspect

    def sizes(self) -> list[int]:
        """Items of each slice."""
        return [stop - start for _, start, stop in self.slices]

    def inputs(self) -> Tensors:
        """The items of every slice as one tensor per input."""
        first = self.slices[0][0]
        return {
            name: Tensor.concat([request.inputs[name].slice(a, b) for request, a, b in self.slices])
            for name in first.inputs
        }
