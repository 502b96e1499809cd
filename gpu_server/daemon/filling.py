"""How batches are bounded and filled: which items of a request still fit."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

from gpu_server.daemon.request import Batch, Request
from gpu_server.wire.documents import ModelInfo


@dataclass(frozen=True)
class Policy:
    """How one model's batches are bounded; `padded` costs a batch as items × longest instead of the sum.

    graphs: ascending costs; a batch takes as long as the smallest that holds it. None: as long as its own cost takes.
    """

    max_batch_tokens: int
    max_batch_items: int
    padded: bool = False
    graphs: tuple[int, ...] = ()

    def up_to_graph(self, cost: int) -> Policy:
        """The same for a batch that is to take no longer than one of `cost`."""
        at = bisect_left(self.graphs, cost)
        graph = self.graphs[at] if at < len(self.graphs) else cost
        return replace(self, max_batch_tokens=min(graph, self.max_batch_tokens))

    def down_to_graph(self, cost: int) -> Policy:
        """The same for batches of at most `cost`, of which none pays for a graph that it cannot fill."""
        at = bisect_right(self.graphs, cost)
        return replace(self, max_batch_tokens=self.graphs[at - 1] if at else cost)


def policy_of(info: ModelInfo) -> Policy:
    """How a model's batches are bounded; where every item costs the same, a full one costs no more than its items."""
    tokens = info.max_batch_tokens
    if isinstance(info.cost, int):
        tokens = min(tokens, info.max_batch_items * info.cost)
    return Policy(tokens, info.max_batch_items, info.padded, info.graphs)


def splits(request: Request, batch: Batch, policy: Policy) -> bool:
    """Whether a request of more than half a batch would only be begun in this one, full but for a quarter.

    One that fits no batch of its own is begun wherever there is room.
    """
    whole = policy.max_batch_tokens
    if 2 * request.cost <= whole or request.items == 1 or (whole - batch.cost) * 4 >= whole:
        return False
    return whole < 2 * request.waiting_cost() <= 2 * whole


def fill(batch: Batch, request: Request, policy: Policy, longest: int) -> int:
    """Move items of one request into the batch while they fit; returns the longest item now in it."""
    while request.waiting:
        start, stop = request.waiting[0]
        room = policy.max_batch_items - batch.items
        if policy.padded:
            end, longest = _fit_padded(request, start, min(stop, start + room), batch, policy, longest)
        else:
            end = _fit(request, start, min(stop, start + room), batch, policy)
        if end == start:
            break
        batch.slices.append((request, start, end))
        batch.items += end - start
        batch.cost = (
            longest * batch.items
            if policy.padded
            else batch.cost + request.cumulative[end] - request.cumulative[start]
        )
        if end < stop:
            request.waiting[0] = (end, stop)
            break
        del request.waiting[0]
    return longest


def _fit(request: Request, start: int, stop: int, batch: Batch, policy: Policy) -> int:
    """How far items from `start` fit by the sum of their costs; one too large for any batch goes alone."""
    cumulative = request.cumulative
    limit = policy.max_batch_tokens - batch.cost + cumulative[start]
    end = stop if cumulative[stop] <= limit else bisect_right(cumulative, limit, start, stop + 1) - 1
    return start + 1 if end <= start < stop and not batch.items else max(end, start)


def _fit_padded(
    request: Request, start: int, stop: int, batch: Batch, policy: Policy, longest: int
) -> tuple[int, int]:
    """As `_fit`, by items × longest."""
    end, items = start, batch.items
    while end < stop:
        wider = max(longest, request.cumulative[end + 1] - request.cumulative[end])
        if wider * (items + 1) > policy.max_batch_tokens and items:
            break
        longest, items, end = wider, items + 1, end + 1
    return end, longest
