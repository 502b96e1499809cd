"""Whatever the order of arrivals, cancels, losses and answers: every item runs once, budgets hold, counters end at 0."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from daemon_fakes import Clock, make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.daemon.filling import Policy
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.daemon.shared_limit import SHARES
from gpu_server.errors import Overloaded

POLICIES = {"sum": Policy(20, 8), "padded": Policy(20, 8, padded=True)}
MAX_ITEMS = 60

arrivals = st.tuples(
    st.just("submit"),
    st.lists(st.integers(1, 30), min_size=1, max_size=24),
    st.sampled_from(sorted(POLICIES)),
    st.integers(0, 2),
    st.sampled_from([0, 1]),
    st.sampled_from([b"a", b"b"]),
)
events = st.tuples(st.sampled_from(["close", "idle", "ahead", "lose", "answer"]), st.integers(0, 99))


class World:
    """A scheduler, the batches out of it, and how often each item has run."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(Clock(), max_items=MAX_ITEMS, max_bytes=10_000)
        for model, policy in POLICIES.items():
            self.scheduler.set_policy(model, policy)
        self.requests: list[Request] = []
        self.flying: list[Batch] = []
        self.ran: Counter[tuple[Request, int]] = Counter()
        self.cancelled: set[Request] = set()

    def submit(self, costs: list[int], model: str, priority: int, param: int, peer: bytes) -> None:
        request = make_request(*costs, model=model, priority=priority, params={"p": param}, peer=peer)
        left = MAX_ITEMS - self.scheduler.items - request.items
        held = sum(r.waiting_items() for r in self.requests if not r.closed and r.peer == peer)
        room = left >= 0 and held <= SHARES[priority] * left
        try:
            self.scheduler.submit(request)
        except Overloaded:
            assert not room
            return
        assert room
        self.requests.append(request)

    def close(self, at: int) -> None:
        still_open = [r for r in self.requests if not r.closed]
        if still_open:
            request = still_open[at % len(still_open)]
            self.scheduler.close(request)
            self.cancelled.add(request)

    def dispatch(self, idle: bool) -> bool:
        batch = self.scheduler.next_batch(idle=idle)
        if batch is None:
            return False
        check_budgets(batch)
        assert all(not request.closed for request, _, _ in batch.slices)
        self.flying.append(batch)
        return True

    def lose(self, at: int) -> None:
        if self.flying:
            self.scheduler.requeue(self.flying.pop(at % len(self.flying)))

    def answer(self, at: int) -> None:
        if not self.flying:
            return
        for request, start, stop in self.flying.pop(at % len(self.flying)).slices:
            if not request.closed:
                self.ran.update((request, item) for item in range(start, stop))
                if request.take(start, {}, stop - start):
                    self.scheduler.close(request)

    def check_counters(self) -> None:
        waiting = [r for r in self.requests if not r.closed]
        scheduler = self.scheduler
        assert scheduler.requests == len(waiting)
        assert scheduler.bytes == sum(r.size for r in waiting)
        assert scheduler.items == sum(r.waiting_items() for r in waiting)
        assert scheduler.queued_tokens() == sum(r.waiting_cost() for r in waiting)
        items, size = Counter[bytes](), Counter[bytes]()
        for request in waiting:
            items[request.peer] += request.waiting_items()
            size[request.peer] += request.size
        assert Counter(scheduler._items.held) == +items
        assert Counter(scheduler._bytes.held) == size
        assert Counter(scheduler._groups.held) == Counter(queue.peer for queue in scheduler._queues.values())
        assert scheduler.backlog == pytest.approx(scheduler.queued_tokens() / 20, abs=1e-6)


def check_budgets(batch: Batch) -> None:
    policy = POLICIES[batch.model]
    costs = [
        b - a
        for request, start, stop in batch.slices
        for a, b in pairwise(request.cumulative[start : stop + 1])
    ]
    assert batch.items == len(costs) > 0
    assert batch.cost == (len(costs) * max(costs) if policy.padded else sum(costs))
    assert batch.items <= policy.max_batch_items
    assert batch.cost <= policy.max_batch_tokens or batch.items == 1
    assert len({request.group for request, _, _ in batch.slices}) == 1


@settings(max_examples=150)
@given(st.lists(arrivals | events, max_size=60))
def test_every_item_runs_once_or_its_request_is_closed(steps: list[tuple[object, ...]]) -> None:
    world = World()
    actions = {
        "submit": world.submit,
        "close": world.close,
        "lose": world.lose,
        "answer": world.answer,
        "idle": lambda _: world.dispatch(idle=True),
        "ahead": lambda _: world.dispatch(idle=False),
    }
    for name, *arguments in steps:
        actions[str(name)](*arguments)
        world.check_counters()
    while world.dispatch(idle=True):
        world.answer(0)
    while world.flying:
        world.answer(0)
    for request in world.requests:
        counts = [world.ran[request, item] for item in range(request.items)]
        assert max(counts) <= 1
        assert request in world.cancelled or min(counts) == 1
    world.check_counters()
    assert world.scheduler.requests == 0
    assert world.scheduler.next_batch(idle=True) is None
    assert (world.scheduler._items.held, world.scheduler._bytes.held, world.scheduler._groups.held) == (
        {},
        {},
        {},
    )
