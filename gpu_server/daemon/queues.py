"""What waits for a model: its requests in order, their cost, and how its batches are bounded at this moment."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

from gpu_server.daemon.filling import Policy
from gpu_server.daemon.request import Request

RAISE_AFTER_S = 60.0
"""How long a budget that was lowered for want of memory stays before it is raised by `RAISE`."""
RAISE = 9 / 8
SWEEP_FROM = 128
"""Entries of a queue, closed requests too, before those are looked for."""
Entry = tuple[float, int, Request]
"""A request behind its tag, and its number among equals."""


class ModelWork:
    """One model: its policy, the cost of its waiting items, and how long a full batch takes (0 until one was timed).

    fitting: the policy by which batches are formed, with a lower budget since `lowered` where memory did not suffice.
    prompt: the part of the cost that is not bulk work; prompt_at: when such a request came last; apart: the last batch was
    of them alone, though bulk work could have filled it.
    """

    __slots__ = ("apart", "batch_s", "cost", "fitting", "lowered", "policy", "prompt", "prompt_at")

    def __init__(self, policy: Policy) -> None:
        self.policy = self.fitting = policy
        self.lowered = 0.0
        self.cost = self.prompt = 0
        self.batch_s = 0.0
        self.prompt_at = -math.inf
        self.apart = False

    def backlog(self) -> float:
        """Waiting work in full batches."""
        return self.cost / self.policy.max_batch_tokens

    def lower(self, tokens: int, now: float) -> None:
        """Form no batches above `tokens` from now on."""
        self.fitting = replace(
            self.policy, max_batch_tokens=max(1, min(tokens, self.fitting.max_batch_tokens))
        )
        self.lowered = now

    def raise_again(self, now: float) -> None:
        """Allow somewhat larger batches if the last change was long enough ago."""
        if self.fitting is self.policy or now - self.lowered < RAISE_AFTER_S:
            return
        tokens = int(self.fitting.max_batch_tokens * RAISE) + 1
        enough = tokens >= self.policy.max_batch_tokens
        self.fitting = self.policy if enough else replace(self.policy, max_batch_tokens=tokens)
        self.lowered = now


class Queue:
    """Waiting requests of one group, prompt or bulk ones, by tag. peer: whose request was the first."""

    __slots__ = ("bulk", "cost", "heap", "items", "model", "peer", "suspect", "sweep_at")

    def __init__(self, model: ModelWork, bulk: bool, suspect: bool, peer: bytes) -> None:
        self.model = model
        self.bulk = bulk
        self.suspect = suspect
        self.peer = peer
        self.heap: list[Entry] = []
        self.sweep_at = SWEEP_FROM
        self.cost = 0
        self.items = 0

    def is_full(self) -> bool:
        """Whether its requests fill a batch."""
        policy = self.model.fitting
        return self.cost >= policy.max_batch_tokens or self.items >= policy.max_batch_items

    def count(self, items: int, cost: int) -> None:
        """Note that items came (or, where negative, left)."""
        self.items += items
        self.cost += cost
        self.model.cost += cost
        if not self.bulk:
            self.model.prompt += cost

    def push(self, entry: Entry) -> None:
        """Add an entry; while no engine takes batches, nobody asks for the head, and only this forgets closed requests."""
        heapq.heappush(self.heap, entry)
        if len(self.heap) > self.sweep_at:
            self.heap = [entry for entry in self.heap if self._waits_here(entry[2])]
            heapq.heapify(self.heap)
            self.sweep_at = max(SWEEP_FROM, 4 * len(self.heap))

    def head(self) -> Request | None:
        """The request to serve next; forgets those before it that do not wait here any more."""
        heap = self.heap
        while heap:
            request = heap[0][2]
            if self._waits_here(request):
                return request
            heapq.heappop(heap)
        return None

    def _waits_here(self, request: Request) -> bool:
        return not request.closed and bool(request.waiting) and request.suspect == self.suspect
