"""Which items run next: a pure queue over an injected clock, no sockets and no threads.

Order. Requests are served by the moment they would finish if all waiting requests shared the engine equally (the «fair
sojourn protocol», Friedman and Henderson 2003): a request gets the tag `virtual time + its cost`, and virtual time moves by
the cost served over the number of waiting requests. So equal requests go first come first served, a short one does not wait
behind a long one, and none waits longer than under equal sharing. Priority scales the cost, so that a bulk request ages
into its turn instead of starving.

Batches. The next batch is formed just before the engine runs dry, so that late arrivals still join it and the engine does
not wait. Until that moment can be foreseen, a partial batch is formed only for an idle engine and a full one may be sent
ahead of a busy one. Costs are measured in batches (cost over the model's budget), which makes models comparable.

Memory. A batch that was too large for the device lowers its model's budget; time raises it again, bit by bit.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from gpu_server.daemon.pace import Pace
from gpu_server.daemon.request import Batch, Group, Request
from gpu_server.errors import Overloaded

PRIORITY_WEIGHT = (0.25, 1.0, 4.0)
SMALL_REQUEST = 1 / 8
"""Requests below this part of a batch count as this much: among small ones arrival order is best for everyone's tail."""
MISFITS = 8
"""Requests looked past, at most, to fill a batch after one did not fit."""
MAX_GROUPS = 1024
"""Kinds of requests that cannot share a batch and may wait at once: forming a batch looks at each kind."""
SMOOTHING = 0.2
HEADROOM = 0.75
"""The part of its deadline that a request may be expected to take: a queue that just fits runs much of its work too late."""
RAISE_AFTER_S = 60.0
"""How long a budget that was lowered for want of memory stays before it is raised by `RAISE`."""
RAISE = 9 / 8


@dataclass(frozen=True)
class Policy:
    """How one model's batches are bounded; `padded` costs a batch as items × longest instead of the sum."""

    max_batch_tokens: int
    max_batch_items: int
    padded: bool = False


class _Model:
    """One model: its policy, the cost of its waiting items, and how long a full batch takes (0 until one was timed).

    fitting: the policy by which batches are formed, with a lower budget since `lowered` where memory did not suffice.
    """

    __slots__ = ("batch_s", "cost", "fitting", "lowered", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = self.fitting = policy
        self.lowered = 0.0
        self.cost = 0
        self.batch_s = 0.0

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


class _Queue:
    """Waiting requests of one group, by tag."""

    __slots__ = ("cost", "heap", "items", "model", "suspect")

    def __init__(self, model: _Model, suspect: bool) -> None:
        self.model = model
        self.suspect = suspect
        self.heap: list[tuple[float, int, Request]] = []
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

    def head(self) -> Request | None:
        """The request to serve next; forgets those that are closed, have nothing left to run or belong elsewhere now."""
        heap = self.heap
        while heap:
            request = heap[0][2]
            if not request.closed and request.waiting and request.suspect == self.suspect:
                return request
            heapq.heappop(heap)
        return None


class Scheduler:
    """Holds accepted requests until they are in a batch.

    clock: seconds, monotonic. max_items, max_bytes: what may wait before requests are refused. due_at: when `due_batch`
    will have the batch that it held back.
    """

    def __init__(self, clock: Callable[[], float], *, max_items: int, max_bytes: int) -> None:
        self._clock = clock
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._models: dict[str, _Model] = {}
        self._queues: dict[Group, _Queue] = {}
        self._order = itertools.count()
        self._batch_ids = itertools.count(1)
        self._virtual = 0.0
        self._pace = Pace(clock)
        self.due_at: float | None = None
        self.requests = 0
        self.items = 0
        self.bytes = 0

    def set_policy(self, model: str, policy: Policy) -> None:
        """Declare a model, or change how its batches are bounded."""
        known = self._models.setdefault(model, _Model(policy))
        if known.policy.max_batch_tokens != policy.max_batch_tokens:
            # A full batch is another amount of work now.
            known.batch_s = 0.0
        if known.policy != policy:
            known.policy = known.fitting = policy

    def queued_tokens(self) -> int:
        """Cost of all waiting items."""
        return sum(model.cost for model in self._models.values())

    @property
    def backlog(self) -> float:
        """Waiting work in full batches."""
        return sum(model.backlog() for model in self._models.values())

    def submit(self, request: Request) -> None:
        """Accept a request of a declared model; raises Overloaded when it would wait too long or there is no room."""
        self._admit(request)
        units = request.cost / self._models[request.model].policy.max_batch_tokens
        request.tag = self._virtual + max(units, SMALL_REQUEST) * PRIORITY_WEIGHT[request.priority]
        self.requests += 1
        self.bytes += request.size
        self._push(request, request.items, request.cost)

    def close(self, request: Request) -> None:
        """Forget a request that has its reply; what has not run never will."""
        if request.closed:
            return
        request.closed = True
        self.requests -= 1
        self.bytes -= request.size
        if request.waiting:
            self._remove(request, request.waiting_items(), request.waiting_cost())
            request.waiting.clear()
        request.release()

    def requeue(self, batch: Batch) -> list[Request]:
        """Put a lost batch's open requests back, each to ride alone from now on; returns them.

        Whatever ended the engine may be in one of them, and must not take the others along again.
        """
        returned = []
        for request, start, stop in batch.slices:
            if not request.closed:
                self.run_alone(request, start, stop)
                returned.append(request)
        return returned

    def run_alone(self, request: Request, start: int, stop: int) -> None:
        """Let items of a request, taken into a batch before, wait again, and the request share no batch from now on."""
        if not request.suspect:
            self._isolate(request)
        request.waiting.insert(0, (start, stop))
        self._push(request, stop - start, request.cumulative[stop] - request.cumulative[start])

    def restart(self, request: Request) -> None:
        """Let every item of a request wait again, those that have run or are in a batch too."""
        items, cost = request.items - request.waiting_items(), request.cost - request.waiting_cost()
        request.restart()
        self._push(request, items, cost)

    def _isolate(self, request: Request) -> None:
        items, cost = request.waiting_items(), request.waiting_cost()
        if items:
            self._remove(request, items, cost)
        request.isolate()
        if items:
            self._push(request, items, cost)

    def next_batch(
        self, *, idle: bool, alone: bool = True, models: Collection[str] | None = None
    ) -> Batch | None:
        """The next batch for an engine that holds `models` (None: all), or None.

        idle: the engine has nothing to do, so a partial batch may go; otherwise only a full one. alone: no other batch runs;
        while one does, a suspect whose turn it is waits, and all others behind it.
        """
        best: tuple[float, Group] | None = None
        for group, queue in list(self._queues.items()):
            head = queue.head()
            if head is None:
                del self._queues[group]
                continue
            if models is not None and head.model not in models:
                continue
            if not idle and not queue.is_full():
                continue
            if best is None or head.tag < best[0]:
                best = (head.tag, group)
        if best is None or (self._queues[best[1]].suspect and not alone):
            return None
        return self._form(best[1])

    def due_batch(self, running: Collection[Batch], models: Collection[str] | None = None) -> Batch | None:
        """The batch to send now to an engine that holds `models` and works on `running`, oldest first; None: not yet.

        A request that was in a lost batch runs with nothing beside it, so that it can take no other along.
        """
        if any(batch.suspect for batch in running):
            self.due_at = None
            return None
        due = self._pace.due(running)
        self.due_at = due if due is not None and self.items and due > self._clock() else None
        if self.due_at is not None:
            return None
        return self.next_batch(idle=due is not None, alone=not running, models=models)

    def learn(self, batch: Batch, seconds: float) -> None:
        """Note that a batch has just ended well, and how long it ran.

        A model's time per full batch is learnt from those at least half full.
        """
        kept_s = self._pace.learn(batch, seconds)
        model = self._models[batch.model]
        model.raise_again(self._clock())
        units = batch.cost / model.policy.max_batch_tokens
        if units >= 0.5 or batch.items * 2 >= model.policy.max_batch_items:
            took = kept_s / units
            model.batch_s += (SMOOTHING if model.batch_s else 1.0) * (took - model.batch_s)

    def lower_budget(self, model: str, tokens: int) -> None:
        """Form batches of at most `tokens` for a model whose larger ones did not fit into the device's memory."""
        self._models[model].lower(tokens, self._clock())

    def estimated_wait_s(self, request: Request) -> float:
        """Seconds until a request would be finished if it were accepted now; 0 with nothing before it.

        Models whose batches have not been timed count as instant: refusing on a guess would refuse what can be done.
        """
        model = self._models[request.model]
        if not self.requests or not model.batch_s:
            return 0.0
        units = request.cost / model.policy.max_batch_tokens
        fair_share_s = max(units, SMALL_REQUEST) * model.batch_s * (self.requests + 1)
        return min(self._backlog_s() + units * model.batch_s, fair_share_s)

    def _backlog_s(self) -> float:
        return sum([model.backlog() * model.batch_s for model in self._models.values()])

    def _admit(self, request: Request) -> None:
        full = ""
        if self.items + request.items > self._max_items:
            full = f"max_queue_items = {self._max_items}"
        elif self.bytes + request.size > self._max_bytes:
            full = f"max_queue_bytes = {self._max_bytes}"
        elif len(self._queues) >= MAX_GROUPS and request.group not in self._queues:
            full = f"{MAX_GROUPS} different parameters or shapes"
        wait_s = self.estimated_wait_s(request)
        budget_s = request.deadline - self._clock()
        if not full and wait_s <= HEADROOM * budget_s:
            return
        retry_s = max(0.05, (self._backlog_s() or 2.0) / 2 if full else wait_s - HEADROOM * budget_s)
        reason = (
            f"the queue is full ({full})"
            if full
            else f"about {wait_s:.1f} s of work wait, more than the deadline"
        )
        raise Overloaded(reason, {"retry_after_ms": int(retry_s * 1000), "queued_items": self.items})

    def _push(self, request: Request, items: int, cost: int) -> None:
        queue = self._queues.get(request.group)
        if queue is None:
            queue = self._queues[request.group] = _Queue(self._models[request.model], request.suspect)
        heapq.heappush(queue.heap, (request.tag, next(self._order), request))
        queue.count(items, cost)
        self.items += items

    def _remove(self, request: Request, items: int, cost: int) -> None:
        self._queues[request.group].count(-items, -cost)
        self.items -= items

    def _form(self, group: Group) -> Batch:
        queue = self._queues[group]
        head = queue.head()
        assert head is not None
        policy = queue.model.fitting
        batch = Batch(next(self._batch_ids), head.model, head.params, self._clock())
        aside: list[tuple[float, int, Request]] = []
        longest = 0
        while len(aside) <= MISFITS and batch.items < policy.max_batch_items:
            request = queue.head()
            if request is None:
                break
            longest = self._fill(batch, request, policy, longest)
            entry = heapq.heappop(queue.heap)
            if request.waiting:
                aside.append(entry)
        for entry in aside:
            heapq.heappush(queue.heap, entry)
        cost = sum([r.cumulative[stop] - r.cumulative[start] for r, start, stop in batch.slices])
        queue.count(-batch.items, -cost)
        self.items -= batch.items
        self._virtual += batch.cost / queue.model.policy.max_batch_tokens / max(1, self.requests)
        return batch

    @staticmethod
    def _fill(batch: Batch, request: Request, policy: Policy, longest: int) -> int:
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
        wider = max(longest, request.costs[end])
        if wider * (items + 1) > policy.max_batch_tokens and items:
            break
        longest, items, end = wider, items + 1, end + 1
    return end, longest
