"""Which items run next: a pure queue over an injected clock, no sockets and no threads.

Order. Requests run in the order of arrival, and the work of a sender who has much outstanding behind what it has outstanding
(`flows`): such bulk work leaves the engine to others until they have had as much, ages into its turn and never starves.

Batches. The next batch is formed just before the engine runs dry, so that late arrivals still join it and the engine does
not wait. Until that moment can be foreseen, a partial batch is formed only for an idle engine; a busy one is sent the next
in order as soon as a full one waits. What is not bulk work waits for no more of it than one batch: it goes in a batch of
its own where that costs little, at most every second one, and bulk work leaves in batches a little smaller while others
come. Costs are measured in batches (cost over the model's budget), which makes models comparable.

Room. What may wait is bounded by items, bytes and kinds of requests; each bound is shared among senders (`shared_limit`).

Memory. A batch that was too large for the device lowers its model's budget; time raises it again, bit by bit.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection

from gpu_server.daemon.filling import Policy, fill, splits
from gpu_server.daemon.flows import BULK, PROMPT, Flows
from gpu_server.daemon.pace import Pace
from gpu_server.daemon.queues import Entry, ModelWork, Queue
from gpu_server.daemon.request import Batch, Group, Request
from gpu_server.daemon.shared_limit import SharedLimit
from gpu_server.errors import DeadlineExceeded, Overloaded

MISFITS = 8
"""Requests looked past, at most, to fill a batch after one did not fit."""
DEEP = 8
"""Batches of prompt work that wait, above which a batch is filled to the last rather than end where a large request does."""
FULL = 0.9
"""The part of its bounds from which on a batch counts as full: requests seldom fill one to the last token."""
LATELY_S = 1.0
"""How long after a prompt request bulk work expects another."""
CHEAP = 4
"""A batch of prompt requests that would run this many times longer when filled up with bulk work goes without it."""
MAX_GROUPS = 1024
"""Kinds of requests that cannot share a batch and may wait at once: forming a batch looks at each kind."""
SMOOTHING = 0.2
HEADROOM = 0.75
"""The part of its deadline that a request may be expected to take: a queue that just fits runs much of its work too late."""


class Scheduler:
    """Holds accepted requests until they are in a batch.

    clock: seconds, monotonic. max_items, max_bytes: what may wait before requests are refused. due_at: when `due_batch`
    will have the batch that it held back.
    """

    def __init__(self, clock: Callable[[], float], *, max_items: int, max_bytes: int) -> None:
        self._clock = clock
        self._items = SharedLimit(max_items, f"max_queue_items = {max_items}")
        self._bytes = SharedLimit(max_bytes, f"max_queue_bytes = {max_bytes}")
        self._groups = SharedLimit(MAX_GROUPS, f"{MAX_GROUPS} different parameters or shapes")
        self._models: dict[str, ModelWork] = {}
        self._queues: dict[tuple[Group, bool], Queue] = {}
        self._order = itertools.count()
        self._batch_ids = itertools.count(1)
        self._flows = Flows()
        self._pace = Pace(clock)
        self.due_at: float | None = None
        self.requests = 0

    def set_policy(self, model: str, policy: Policy) -> None:
        """Declare a model, or change how its batches are bounded."""
        known = self._models.setdefault(model, ModelWork(policy))
        if known.policy.max_batch_tokens != policy.max_batch_tokens:
            # A full batch is another amount of work now.
            known.batch_s = 0.0
        if known.policy != policy:
            known.policy = known.fitting = policy

    @property
    def items(self) -> int:
        """Items that wait."""
        return self._items.used

    @property
    def bytes(self) -> int:
        """Bytes of input of all requests without a reply."""
        return self._bytes.used

    def queued_tokens(self) -> int:
        """Cost of all waiting items."""
        return sum(model.cost for model in self._models.values())

    @property
    def backlog(self) -> float:
        """Waiting work in full batches."""
        return sum(model.backlog() for model in self._models.values())

    def submit(self, request: Request) -> None:
        """Accept a request of a declared model.

        Raises Overloaded when it would wait too long or there is no room, DeadlineExceeded when its deadline has passed.
        """
        self._admit(request)
        model = self._models[request.model]
        self._flows.enter(request, model.policy.max_batch_tokens)
        if not request.bulk:
            model.prompt_at = request.arrived
        self.requests += 1
        self._bytes.take(request.peer, request.size)
        self._push(request, request.items, request.cost)

    def close(self, request: Request) -> None:
        """Forget a request that has its reply; what has not run never will."""
        if request.closed:
            return
        request.closed = True
        self._flows.leave(request)
        self.requests -= 1
        self._bytes.give(request.peer, request.size)
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

        idle: the engine has nothing to do, so a partial batch may go; otherwise only while a full one waits, or full ones
        that keep coming would starve it. alone: no other batch runs; while one does, a suspect whose turn it is waits, and
        all others behind it.
        """
        best, first, ready = None, math.inf, idle
        for key, queue in list(self._queues.items()):
            head = queue.head()
            if head is None:
                self._drop(key)
                continue
            if models is not None and head.model not in models:
                continue
            ready = ready or queue.is_full()
            if head.tag < first:
                best, first = key, head.tag
        if best is None or not ready or (self._queues[best].suspect and not alone):
            return None
        return self._form(*best)

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

    def are_brief(self, running: Collection[Batch]) -> bool:
        """Whether these batches are known to be done so soon that another should be there by then."""
        return self._pace.are_brief(running)

    def learn(self, batch: Batch, seconds: float) -> None:
        """Note that a batch has just ended well, and how long it ran.

        A model's time per full batch is learnt from those at least half full.
        """
        model = self._models[batch.model]
        units = batch.cost / model.policy.max_batch_tokens
        filled = max(units, batch.items / model.policy.max_batch_items)
        kept_s = self._pace.learn(batch, seconds, full=filled >= FULL)
        model.raise_again(self._clock())
        if filled >= 0.5:
            took = kept_s / units
            model.batch_s += (SMOOTHING if model.batch_s else 1.0) * (took - model.batch_s)

    def ended(self) -> None:
        """Note that a batch has just ended of whose time nothing can be learnt."""
        self._pace.ended()

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
        batches = request.cost / model.policy.max_batch_tokens
        owed = self._flows.owed(request, model.policy.max_batch_tokens) / model.policy.max_batch_tokens
        if owed <= PROMPT and request.priority != BULK:
            return self._prompt_s() + batches * model.batch_s
        fair_share_s = max(owed, 1.0) * model.batch_s * (len(self._flows) + 1)
        return min(self._backlog_s() + batches * model.batch_s, fair_share_s)

    def _prompt_s(self) -> float:
        return sum([m.prompt / m.policy.max_batch_tokens * m.batch_s for m in self._models.values()])

    def _backlog_s(self) -> float:
        return sum([model.backlog() * model.batch_s for model in self._models.values()])

    def _admit(self, request: Request) -> None:
        budget_s = request.deadline - self._clock()
        if budget_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be queued")
        full = self._lacks_room(request)
        wait_s = self.estimated_wait_s(request)
        if not full and wait_s <= HEADROOM * budget_s:
            return
        retry_s = max(0.05, (self._backlog_s() or 2.0) / 2 if full else wait_s - HEADROOM * budget_s)
        reason = (
            f"the queue is full ({full})"
            if full
            else f"about {wait_s:.3g} s of work wait, more than {HEADROOM:.0%} of the "
            f"{budget_s:.3g} s to the deadline"
        )
        raise Overloaded(reason, {"retry_after_ms": int(retry_s * 1000), "queued_items": self.items})

    def _lacks_room(self, request: Request) -> str:
        peer, priority = request.peer, request.priority
        full = self._items.refusal(peer, request.items, priority)
        full = full or self._bytes.refusal(peer, request.size, priority)
        return full or (self._groups.refusal(peer, 1, priority) if self._is_new(request.group) else "")

    def _is_new(self, group: Group) -> bool:
        return (group, False) not in self._queues and (group, True) not in self._queues

    def _push(self, request: Request, items: int, cost: int) -> None:
        key = request.group, request.bulk
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(
                self._models[request.model], request.bulk, request.suspect, request.peer
            )
            self._groups.take(request.peer, 1)
        queue.push((request.tag, next(self._order), request))
        queue.count(items, cost)
        self._items.take(request.peer, items)

    def _remove(self, request: Request, items: int, cost: int) -> None:
        key = request.group, request.bulk
        queue = self._queues[key]
        queue.count(-items, -cost)
        if not queue.items:
            self._drop(key)
        self._items.give(request.peer, items)

    def _drop(self, key: tuple[Group, bool]) -> None:
        self._groups.give(self._queues.pop(key).peer, 1)

    def _form(self, group: Group, bulk: bool) -> Batch:
        queue, other = self._queues[group, bulk], self._queues.get((group, not bulk))
        head, model = queue.head(), queue.model
        assert head is not None
        batch = Batch(next(self._batch_ids), head.model, head.params, self._clock())
        batch.waited_since = head.arrived
        whole = beside = model.fitting
        if bulk or other is not None:
            beside = self._beside_prompt(batch, model)
        longest = self._take(batch, queue, beside if bulk else whole, 0)
        model.apart = other is not None and not bulk and self._goes_apart(batch, model, beside)
        if other is not None and not model.apart:
            self._take(batch, other, whole if bulk else beside, longest)
        self._flows.served(batch.cost / model.policy.max_batch_tokens)
        return batch

    def _beside_prompt(self, batch: Batch, model: ModelWork) -> Policy:
        """How far bulk work may fill a batch: not to the full while prompt requests come, which would wait for all of it."""
        if batch.formed - model.prompt_at > LATELY_S:
            return model.fitting
        knee = self._pace.knee(batch.model, model.fitting.max_batch_tokens)
        return model.fitting.down_to_graph(knee)

    def _goes_apart(self, batch: Batch, model: ModelWork, beside: Policy) -> bool:
        """Whether a batch of prompt requests leaves without bulk work to fill it up: every second one, if that is cheap."""
        alone = self._pace.estimate(batch.model, batch.cost)
        filled = self._pace.estimate(batch.model, beside.max_batch_tokens)
        return not model.apart and alone is not None and filled is not None and alone * CHEAP <= filled

    def _take(self, batch: Batch, queue: Queue, policy: Policy, longest: int) -> int:
        """Move requests of one queue into the batch while they fit; returns the longest item now in it."""
        aside: list[Entry] = []
        items, taken = batch.items, len(batch.slices)
        whole = not queue.bulk and queue.model.prompt < DEEP * policy.max_batch_tokens
        while len(aside) <= MISFITS and batch.items < policy.max_batch_items:
            request = queue.head()
            if request is None:
                break
            if whole and splits(request, batch, policy):
                longest = fill(batch, request, policy.up_to_graph(batch.cost), longest)
                break
            longest = fill(batch, request, policy, longest)
            entry = heapq.heappop(queue.heap)
            if request.waiting:
                aside.append(entry)
        for entry in aside:
            heapq.heappush(queue.heap, entry)
        cost = 0
        for request, start, stop in batch.slices[taken:]:
            cost += request.cumulative[stop] - request.cumulative[start]
            self._items.give(request.peer, stop - start)
        queue.count(items - batch.items, -cost)
        return longest
