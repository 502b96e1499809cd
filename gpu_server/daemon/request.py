"""One accepted request: what it asks, which of its items still wait, and the answers that have come so far."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from gpu_server.wire import ItemError, Tensor, Tensors, Timing

Group = tuple[Any, ...]
"""What requests must share to ride in one batch: model, parameters and, where it may vary, each input's signature."""


class Request:
    """State of one request between admission and its single reply.

    costs: what each item adds to a batch. deadline, arrived: seconds on the daemon's clock. size: bytes of input.
    waiting: ranges of items not yet in a batch. closed: the reply has been made, whatever it was. suspect: it was in a
    batch that the engine did not survive, and rides alone.
    """

    __slots__ = (
        "arrived",
        "attempts",
        "batch_items",
        "batch_tokens",
        "closed",
        "compute_us",
        "cost",
        "costs",
        "cumulative",
        "deadline",
        "group",
        "id",
        "inputs",
        "item_errors",
        "items",
        "model",
        "params",
        "parts",
        "peer",
        "priority",
        "queue_us",
        "remaining",
        "size",
        "suspect",
        "tag",
        "waiting",
    )

    def __init__(
        self,
        *,
        peer: bytes,
        id: bytes,  # noqa: A002 - the protocol's word
        model: str,
        inputs: Tensors,
        params: dict[str, Any],
        costs: Sequence[int],
        priority: int,
        arrived: float,
        deadline: float,
        group: Group = (),
    ) -> None:
        self.peer = peer
        self.id = id
        self.model = model
        self.inputs = inputs
        self.params = params
        self.costs = costs
        self.items = len(costs)
        self.cumulative: list[int] = [0, costs[0]] if self.items == 1 else [0, *accumulate(costs)]
        self.cost = self.cumulative[-1]
        self.priority = priority
        self.arrived = arrived
        self.deadline = deadline
        self.size = sum([len(t.data) for t in inputs.values()])
        self.group = group or (model,)
        self.tag = 0.0
        self.attempts = 0
        self.suspect = False
        self.closed = False
        self.waiting = [(0, self.items)]
        self.remaining = self.items
        self.parts: list[tuple[int, Tensors]] = []
        self.item_errors: list[ItemError] = []
        self.queue_us = 0
        self.compute_us = 0
        self.batch_items = 0
        self.batch_tokens = 0

    def release(self) -> None:
        """Let go of what it holds: it has its reply, but may stand in a queue until its deadline."""
        self.inputs = {}
        self.parts = []
        self.costs = ()
        self.cumulative = []

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

    def note_errors(self, errors: Sequence[ItemError], at: int, start: int, items: int) -> None:
        """Keep the errors of `items` items that stand in a batch from row `at` on and in the request from `start` on."""
        shift = start - at
        self.item_errors += [
            ItemError(e.item + shift, e.code, e.message) for e in errors if at <= e.item < at + items
        ]

    def take(self, start: int, outputs: Tensors, items: int) -> bool:
        """Keep the outputs of `items` items from `start` on; True when every item has its answer."""
        self.parts.append((start, outputs))
        self.remaining -= items
        return self.remaining == 0

    def outputs(self) -> Tensors:
        """The outputs of all items, in order. Raises ValueError when batches gave outputs that do not fit together."""
        if len(self.parts) == 1:
            return self.parts[0][1]
        self.parts.sort(key=lambda part: part[0])
        whole: Tensors = {}
        for name, first in self.parts[0][1].items():
            column = [outputs.get(name) for _, outputs in self.parts]
            if any(t is None or t.signature != first.signature for t in column):
                raise ValueError(f"output {name!r} differs in type or shape between batches")
            whole[name] = Tensor.concat([t for t in column if t is not None])
        return whole

    def timing(self, now: float) -> Timing:
        """Where this request's time went, up to `now`."""
        total_us = int((now - self.arrived) * 1e6)
        return Timing(self.queue_us, self.compute_us, total_us, self.batch_items, self.batch_tokens)


class Batch:
    """What one forward runs: slices of requests of one group, in order."""

    __slots__ = ("cost", "formed", "id", "items", "model", "params", "sent", "slices")

    def __init__(self, batch_id: int, model: str, params: dict[str, Any], formed: float) -> None:
        self.id = batch_id
        self.model = model
        self.params = params
        self.formed = formed
        self.sent = formed
        self.slices: list[tuple[Request, int, int]] = []
        self.cost = 0
        self.items = 0

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
