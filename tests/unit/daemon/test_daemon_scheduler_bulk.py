"""Prompt requests beside bulk work: they wait for one batch of it at most, and it always comes to its turn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from daemon_fakes import Clock, make_request, slices
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.daemon.filling import Policy
from gpu_server.daemon.pace import KNEE, LEARNT
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import LATELY_S, Scheduler

BUDGET = 1000
FIXED_S, COST_S = 0.1e-3, 1e-6
"""What a batch takes: a small one a tenth of a full one."""


class World:
    """A scheduler before one engine that runs batch after batch."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(self.clock, max_items=1 << 20, max_bytes=1 << 30)
        self.scheduler.set_policy("m", Policy(BUDGET, BUDGET))
        self.done: set[Request] = set()

    def submit(self, cost: int, items: int = 1, **options: Any) -> Request:
        request = make_request(*[cost // items] * items, arrived=self.clock.now, **options)
        self.scheduler.submit(request)
        return request

    def keep_bulk(self, requests: int = 20) -> None:
        """Let one peer have so many requests of almost a batch outstanding, all of them bulk work."""
        for _ in range(requests):
            self.submit(900, 90, peer=b"bulk")
        for _ in range(3):
            self.run()

    def run(self) -> Batch:
        """One batch to its end."""
        batch = self.scheduler.next_batch(idle=True)
        assert batch is not None
        self.clock.advance(FIXED_S + COST_S * batch.cost)
        self.scheduler.learn(batch, FIXED_S + COST_S * batch.cost)
        for request, start, stop in batch.slices:
            if not request.closed and request.take(start, {}, stop - start):
                self.scheduler.close(request)
                self.done.add(request)
        return batch


@pytest.fixture
def world() -> World:
    """A world whose scheduler knows how long batches take."""
    made = World()
    for cost in [100, 900] * LEARNT:
        made.submit(cost)
        made.run()
    made.clock.advance(2 * LATELY_S)
    return made


def peers(batch: Batch) -> set[bytes]:
    return {request.peer for request, _, _ in batch.slices}


def test_a_prompt_request_goes_before_queued_bulk_work_and_alone(world: World) -> None:
    world.keep_bulk()
    single = world.submit(10, peer=b"single")
    assert slices(world.run()) == [(single, 0, 1)]
    assert peers(world.run()) == {b"bulk"}


def test_bulk_work_is_in_every_second_batch(world: World) -> None:
    world.keep_bulk(40)
    batches = []
    for _ in range(20):
        world.submit(10, peer=b"single")
        batches.append(world.run())
    assert all(b"single" in peers(batch) for batch in batches)
    assert all(b"bulk" in peers(one) | peers(next_one) for one, next_one in pairwise(batches))


def test_bulk_work_fills_up_what_would_not_be_much_shorter_alone(world: World) -> None:
    world.keep_bulk()
    world.submit(500, peer=b"other")
    assert peers(world.run()) == {b"other", b"bulk"}


def test_bulk_batches_are_smaller_while_prompt_requests_come(world: World) -> None:
    world.keep_bulk(40)
    world.submit(10, peer=b"single")
    world.run()
    shorter = world.run()
    rate = shorter.cost / (FIXED_S + COST_S * shorter.cost)
    full = BUDGET / (FIXED_S + COST_S * BUDGET)
    assert peers(shorter) == {b"bulk"}
    assert KNEE - 0.02 < rate / full < 0.99
    world.clock.advance(2 * LATELY_S)
    assert world.run().cost == BUDGET


def test_a_large_request_is_not_begun_at_the_end_of_a_batch(world: World) -> None:
    first, second = (world.submit(800, 80, peer=peer) for peer in (b"a", b"b"))
    assert slices(world.run()) == [(first, 0, 80)]
    assert slices(world.run()) == [(second, 0, 80)]


def test_small_requests_fill_a_batch_to_the_last(world: World) -> None:
    for number in range(24):
        world.submit(90, 9, peer=b"%d" % number)
    assert [world.run().cost for _ in range(3)] == [BUDGET, BUDGET, 160]


def test_half_a_batch_is_not_too_large_to_be_begun(world: World) -> None:
    first, second = (world.submit(cost, cost // 10, peer=b"%d" % cost) for cost in (800, BUDGET // 2))
    assert slices(world.run()) == [(first, 0, 80), (second, 0, 20)]
    assert slices(world.run()) == [(second, 20, 50)]


@pytest.mark.parametrize(
    ("graphs", "begun"), [((), 0), ((500, 900, 1000), 10), ((500, 800, 1000), 0), ((500, 5000), 20)]
)
def test_a_large_request_is_begun_where_the_batch_takes_no_longer_for_it(
    world: World, graphs: tuple[int, ...], begun: int
) -> None:
    world.scheduler.set_policy("m", Policy(BUDGET, BUDGET, graphs=graphs))
    first, second = (world.submit(cost, cost // 10, peer=b"%d" % cost) for cost in (800, 600))
    taken = [(second, 0, begun)] if begun else []
    assert slices(world.run()) == [(first, 0, 80), *taken]
    assert slices(world.run()) == [(second, begun, 60)]


def test_bulk_work_beside_prompt_requests_fills_its_graph(world: World) -> None:
    world.scheduler.set_policy("m", Policy(BUDGET, BUDGET, graphs=(512, 700, 990, BUDGET)))
    assert bulk_beside_prompt(world) == 700


def bulk_beside_prompt(world: World) -> int:
    """The cost of the larger batches while bulk work waits and single requests come."""
    world.keep_bulk()
    costs = []
    for _ in range(6):
        world.submit(10, peer=b"single")
        costs.append(world.run().cost)
    return max(costs)


def test_a_long_queue_is_served_in_full_batches(world: World) -> None:
    for number in range(30):
        world.submit(800, 80, peer=b"%d" % number)
    assert world.run().cost == BUDGET


def test_expiry_within_a_flow_does_not_let_its_later_requests_overtake(world: World) -> None:
    elders = [world.submit(900, 90, peer=b"bulk") for _ in range(12)]
    for gone in elders[4:9]:
        world.scheduler.close(gone)
    late = [world.submit(900, 90, peer=b"bulk") for _ in range(3)]
    order: list[Request] = []
    while world.scheduler.requests:
        order += [request for request, _, _ in world.run().slices]
    wanted = [*elders[:4], *elders[9:], *late]
    assert list(dict.fromkeys(order)) == wanted


def test_what_fits_no_batch_that_is_begun_comes_to_its_turn(world: World) -> None:
    large = world.submit(2500, priority=2)
    for _ in range(1000):
        world.submit(1, peer=b"single")
        world.run()
        if large in world.done:
            return
    pytest.fail("starved")


requests = st.tuples(st.sampled_from([1, 300, 900, 2500]), st.sampled_from([b"a", b"b"]), st.integers(0, 2))


@settings(max_examples=40)
@given(
    st.lists(requests, min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from([300, 900]), st.integers(0, 2)), min_size=1, max_size=3),
    st.sampled_from([b"a", b"new"]),
)
def test_nothing_starves_under_an_endless_stream(
    waiting: list[tuple[int, bytes, int]], stream: list[tuple[int, int]], newcomer: bytes
) -> None:
    world = World()
    first = [world.submit(cost, peer=peer, priority=priority) for cost, peer, priority in waiting]
    for _ in range(1000):
        for cost, priority in stream:
            if world.scheduler.backlog < 30:
                world.submit(cost, peer=newcomer, priority=priority)
        world.run()
        if world.done.issuperset(first):
            return
    pytest.fail("starved")
