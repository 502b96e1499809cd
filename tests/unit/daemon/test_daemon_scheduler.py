"""The scheduler's order, budgets and bounds, one rule a test, on a clock that stands still."""

from __future__ import annotations

from typing import Any

import pytest
from daemon_fakes import Clock, make_request, slices

from gpu_server.daemon.filling import Policy
from gpu_server.daemon.queues import RAISE_AFTER_S
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import MAX_GROUPS, Scheduler
from gpu_server.errors import DeadlineExceeded, Overloaded


@pytest.fixture
def scheduler() -> Scheduler:
    made = Scheduler(Clock(), max_items=2000, max_bytes=10_000)
    made.set_policy("m", Policy(10, 6))
    made.set_policy("other", Policy(10, 6))
    made.set_policy("padded", Policy(10, 6, padded=True))
    return made


def submit(scheduler: Scheduler, *costs: int, **options: Any) -> Request:
    request = make_request(*costs, **options)
    scheduler.submit(request)
    return request


def run_all(scheduler: Scheduler) -> list[Batch]:
    batches = []
    while (batch := scheduler.next_batch(idle=True)) is not None:
        batches.append(batch)
    return batches


def test_nothing_waits_nothing_runs(scheduler: Scheduler) -> None:
    assert scheduler.next_batch(idle=True) is None


def test_a_partial_batch_waits_for_an_idle_engine_and_takes_late_arrivals_along(scheduler: Scheduler) -> None:
    first = submit(scheduler, 2, 2)
    assert scheduler.next_batch(idle=False) is None
    late = submit(scheduler, 5)
    assert scheduler.next_batch(idle=False) is None
    assert slices(scheduler.next_batch(idle=True)) == [(first, 0, 2), (late, 0, 1)]


@pytest.mark.parametrize("costs", [[5, 5], [1] * 6], ids=["tokens", "items"])
def test_a_full_batch_goes_ahead_of_a_busy_engine(scheduler: Scheduler, costs: list[int]) -> None:
    for cost in costs[:-1]:
        submit(scheduler, cost)
    assert scheduler.next_batch(idle=False) is None
    submit(scheduler, costs[-1])
    batch = scheduler.next_batch(idle=False)
    assert batch is not None
    assert (batch.items, batch.cost) == (len(costs), sum(costs))
    assert scheduler.next_batch(idle=False) is None


@pytest.mark.parametrize("lost", [False, True])
def test_full_batches_that_keep_coming_do_not_starve_what_fills_none(
    scheduler: Scheduler, lost: bool
) -> None:
    small = submit(scheduler, 1, params={"other": 1}, peer=b"single")
    if lost:
        batch = scheduler.next_batch(idle=True)
        assert batch is not None
        scheduler.requeue(batch)
    submit(scheduler, *[5] * 20)
    assert slices(scheduler.next_batch(idle=False)) == [(small, 0, 1)]


def test_a_large_request_is_split_within_both_budgets(scheduler: Scheduler) -> None:
    request = submit(scheduler, *[4] * 5, *[1] * 8)
    parts = [slices(batch) for batch in run_all(scheduler)]
    assert parts == [[(request, 0, 2)], [(request, 2, 4)], [(request, 4, 10)], [(request, 10, 13)]]


@pytest.mark.parametrize("model", ["m", "padded"])
def test_an_item_above_the_budget_goes_alone(scheduler: Scheduler, model: str) -> None:
    request = submit(scheduler, 1, 50, 1, 60, model=model)
    parts = [slices(batch) for batch in run_all(scheduler)]
    assert parts == [[(request, 0, 1)], [(request, 1, 2)], [(request, 2, 3)], [(request, 3, 4)]]


def test_a_padded_batch_costs_items_times_longest(scheduler: Scheduler) -> None:
    request = submit(scheduler, 2, 2, 3, 4, 4, model="padded")
    batches = run_all(scheduler)
    assert [slices(b) for b in batches] == [[(request, 0, 3)], [(request, 3, 5)]]
    assert [b.cost for b in batches] == [9, 8]


def test_a_padded_batch_stops_at_an_item_that_would_make_all_others_dear(scheduler: Scheduler) -> None:
    short = submit(scheduler, 2, 2, model="padded")
    long = submit(scheduler, 8, model="padded")
    assert [slices(b) for b in run_all(scheduler)] == [[(short, 0, 2)], [(long, 0, 1)]]


def test_equal_requests_are_served_in_order_of_arrival(scheduler: Scheduler) -> None:
    requests = [submit(scheduler, 5) for _ in range(8)]
    served = [request for batch in run_all(scheduler) for request, _, _ in batch.slices]
    assert served == requests


def test_small_requests_of_different_sizes_are_served_in_order_of_arrival(scheduler: Scheduler) -> None:
    scheduler.set_policy("wide", Policy(800, 2))
    requests = [submit(scheduler, cost, model="wide") for cost in (90, 10, 70, 1)]
    served = [request for batch in run_all(scheduler) for request, _, _ in batch.slices]
    assert served == requests


def test_a_short_request_overtakes_a_bulk_one_that_came_first(scheduler: Scheduler) -> None:
    bulk = submit(scheduler, *[5] * 20)
    assert slices(scheduler.next_batch(idle=True)) == [(bulk, 0, 2)]
    short = submit(scheduler, 3)
    assert slices(scheduler.next_batch(idle=True)) == [(short, 0, 1), (bulk, 2, 3)]


def test_a_request_that_does_not_fit_leaves_its_room_to_a_later_one(scheduler: Scheduler) -> None:
    first, second = (submit(scheduler, cost, priority=0) for cost in (7, 8))
    third = submit(scheduler, 3)
    assert [slices(b) for b in run_all(scheduler)] == [[(first, 0, 1), (third, 0, 1)], [(second, 0, 1)]]


def test_priority_comes_before_arrival(scheduler: Scheduler) -> None:
    waiting = {priority: submit(scheduler, 10, priority=priority) for priority in (2, 1, 0)}
    served = [slices(batch)[0][0] for batch in run_all(scheduler)]
    assert served == [waiting[0], waiting[1], waiting[2]]


def test_a_bulk_request_ages_into_its_turn_under_a_stream_of_interactive_ones(scheduler: Scheduler) -> None:
    bulk = submit(scheduler, 10, priority=2)
    for turn in range(100):
        stream = submit(scheduler, 10, priority=0)
        (served, _, _) = slices(scheduler.next_batch(idle=True))[0]
        scheduler.close(served)
        if served is bulk:
            assert turn > 1, "priority had no effect"
            return
        assert served is stream
    pytest.fail("the bulk request starved")


@pytest.mark.parametrize("other", [{"model": "other"}, {"params": {"p": 2}}, {}])
def test_groups_never_ride_together(scheduler: Scheduler, other: dict[str, Any]) -> None:
    pair = [submit(scheduler, 1, **options) for options in ({"params": {"p": 1}}, other)]
    assert [[r for r, _, _ in b.slices] for b in run_all(scheduler)] == [[pair[0]], [pair[1]]]
    submit(scheduler, 1, params={"p": 1})
    submit(scheduler, 1, params={"p": 1})
    assert [b.items for b in run_all(scheduler)] == [2]


def test_an_engine_gets_only_models_it_holds(scheduler: Scheduler) -> None:
    submit(scheduler, 1)
    kept = submit(scheduler, 1, model="other")
    assert slices(scheduler.next_batch(idle=True, models={"other"})) == [(kept, 0, 1)]
    assert scheduler.next_batch(idle=True, models={"other"}) is None


def test_closing_frees_the_room_and_the_items_never_run(scheduler: Scheduler) -> None:
    closed, kept = submit(scheduler, 5, 5, 5), submit(scheduler, 1)
    first = scheduler.next_batch(idle=True)
    scheduler.close(closed)
    scheduler.close(closed)
    assert (scheduler.requests, scheduler.items, scheduler.bytes) == (1, 1 if kept.waiting else 0, 1)
    assert [r for b in [first, *run_all(scheduler)] for r, *_ in slices(b)].count(closed) == 1
    scheduler.close(kept)
    assert (scheduler.requests, scheduler.items, scheduler.bytes) == (0, 0, 0)
    assert scheduler.backlog == pytest.approx(0, abs=1e-9)
    assert scheduler.queued_tokens() == 0


def test_a_lost_batch_goes_back_and_its_requests_ride_alone(scheduler: Scheduler) -> None:
    first, second, third = submit(scheduler, 4, 4, 4), submit(scheduler, 1), submit(scheduler, 1)
    before = (scheduler.requests, scheduler.items, scheduler.bytes, scheduler.queued_tokens())
    batch = scheduler.next_batch(idle=True)
    assert {r for r, _, _ in slices(batch)} == {first, second, third}
    assert batch is not None
    assert scheduler.requeue(batch) == [r for r, _, _ in batch.slices]
    assert (scheduler.requests, scheduler.items, scheduler.bytes, scheduler.queued_tokens()) == before
    newcomer = submit(scheduler, 1)
    again = run_all(scheduler)
    assert all(len({r for r, _, _ in b.slices}) == 1 for b in again)
    ran = sorted((id(r), item) for b in again for r, start, stop in b.slices for item in range(start, stop))
    wanted = [(first, 0), (first, 1), (first, 2), (second, 0), (third, 0), (newcomer, 0)]
    assert ran == sorted((id(r), item) for r, item in wanted)
    assert (scheduler.items, scheduler.queued_tokens()) == (0, 0)


def test_a_closed_request_of_a_lost_batch_stays_out(scheduler: Scheduler) -> None:
    closed, kept = submit(scheduler, 1), submit(scheduler, 1)
    batch = scheduler.next_batch(idle=True)
    scheduler.close(closed)
    assert batch is not None
    assert scheduler.requeue(batch) == [kept]
    assert slices(scheduler.next_batch(idle=True)) == [(kept, 0, 1)]


def test_a_suspect_runs_with_no_other_batch_beside_it(scheduler: Scheduler) -> None:
    suspect = submit(scheduler, 1)
    lost = scheduler.next_batch(idle=True)
    assert lost is not None
    scheduler.requeue(lost)
    submit(scheduler, 1)
    running = Batch(99, "m", {}, 0.0)
    running.slices = [(submit(scheduler, 1), 0, 1)]
    assert scheduler.next_batch(idle=True, alone=False) is None
    alone = scheduler.due_batch([])
    assert slices(alone) == [(suspect, 0, 1)]
    assert alone is not None
    assert scheduler.due_batch([alone]) is None
    assert scheduler.due_at is None
    assert scheduler.due_batch([]) is not None


def test_a_full_queue_refuses_by_items() -> None:
    scheduler = Scheduler(Clock(), max_items=3, max_bytes=100)
    scheduler.set_policy("m", Policy(10, 10))
    first = submit(scheduler, 1, 1)
    with pytest.raises(Overloaded, match="max_queue_items = 3") as refused:
        submit(scheduler, 1, 1)
    assert refused.value.retry_after_s >= 0.05
    assert refused.value.details["queued_items"] == 2
    scheduler.close(first)
    submit(scheduler, 1, 1, 1)


def test_a_full_queue_refuses_by_bytes_until_the_reply_is_made() -> None:
    scheduler = Scheduler(Clock(), max_items=100, max_bytes=3)
    scheduler.set_policy("m", Policy(10, 10))
    first = submit(scheduler, 1, 1)
    assert scheduler.next_batch(idle=True) is not None
    with pytest.raises(Overloaded, match="max_queue_bytes = 3"):
        submit(scheduler, 1, 1)
    scheduler.close(first)
    submit(scheduler, 1, 1)


def learn(scheduler: Scheduler, seconds: float) -> None:
    """Run one full batch that took `seconds`."""
    request = submit(scheduler, 10)
    batch = scheduler.next_batch(idle=True)
    assert batch is not None
    scheduler.learn(batch, seconds)
    scheduler.close(request)


def test_a_request_that_would_miss_its_deadline_is_refused_at_once(scheduler: Scheduler) -> None:
    learn(scheduler, 1.0)
    for _ in range(4):
        submit(scheduler, 10)
    with pytest.raises(
        Overloaded, match=r"5 s of work wait, more than 75% of the 2 s to the deadline"
    ) as refused:
        submit(scheduler, 10, deadline=1002.0)
    assert refused.value.retry_after_s == pytest.approx(3.5)
    submit(scheduler, 10, deadline=1006.7)


def test_a_request_whose_deadline_has_passed_is_refused_without_a_queue_too(scheduler: Scheduler) -> None:
    with pytest.raises(DeadlineExceeded, match="passed before the request could be queued"):
        submit(scheduler, 10, deadline=999.0)


def test_a_short_request_is_not_refused_for_the_bulk_it_overtakes(scheduler: Scheduler) -> None:
    learn(scheduler, 1.0)
    submit(scheduler, *[5] * 100)
    submit(scheduler, 1, deadline=1001.0)


def test_a_queue_that_just_fits_is_too_long(scheduler: Scheduler) -> None:
    learn(scheduler, 1.0)
    for _ in range(4):
        submit(scheduler, 10)
    with pytest.raises(Overloaded):
        submit(scheduler, 10, deadline=1005.5)


def test_want_of_memory_lowers_the_budget_and_time_raises_it_again() -> None:
    clock = Clock()
    scheduler = Scheduler(clock, max_items=2000, max_bytes=10_000)
    scheduler.set_policy("m", Policy(10, 10))

    def largest() -> int:
        request = submit(scheduler, *[1] * 10)
        batch = scheduler.next_batch(idle=True)
        assert batch is not None
        scheduler.learn(batch, 0.0)
        scheduler.close(request)
        return batch.cost

    assert largest() == 10
    scheduler.lower_budget("m", 4)
    assert [largest(), largest()] == [4, 4]
    seen = []
    for _ in range(8):
        clock.advance(RAISE_AFTER_S)
        seen.append((largest(), largest())[1])
    assert seen[0] == 5
    assert seen == sorted(seen)
    assert seen[-1] == 10


def test_an_item_above_a_lowered_budget_still_runs_alone(scheduler: Scheduler) -> None:
    scheduler.lower_budget("m", 4)
    submit(scheduler, 8, 1)
    batch = scheduler.next_batch(idle=True)
    assert batch is not None
    assert (batch.items, batch.cost) == (1, 8)


def test_while_the_rate_is_unknown_only_room_counts(scheduler: Scheduler) -> None:
    submit(scheduler, *[5] * 100)
    assert scheduler.estimated_wait_s(make_request(1)) == 0.0
    submit(scheduler, 1, deadline=1000.001)


def test_small_batches_teach_nothing_of_the_rate(scheduler: Scheduler) -> None:
    submit(scheduler, 1)
    batch = scheduler.next_batch(idle=True)
    assert batch is not None
    scheduler.learn(batch, 100.0)
    assert scheduler.estimated_wait_s(make_request(10)) == 0.0


def test_a_slow_batch_does_not_refuse_an_empty_queue(scheduler: Scheduler) -> None:
    learn(scheduler, 40.0)
    submit(scheduler, 1, deadline=1001.0)


def test_each_model_has_a_pace_of_its_own(scheduler: Scheduler) -> None:
    scheduler.set_policy("slow", Policy(10, 4))
    slow = make_request(10, model="slow")
    scheduler.submit(slow)
    batch = scheduler.next_batch(idle=True)
    assert batch is not None
    scheduler.learn(batch, 100.0)
    learn(scheduler, 1.0)
    assert scheduler.estimated_wait_s(make_request(10)) == pytest.approx(1.0)
    scheduler.submit(make_request(10, model="slow", priority=2, deadline=9000.0))
    assert scheduler.estimated_wait_s(make_request(10, model="slow")) == pytest.approx(100.0)
    assert scheduler.estimated_wait_s(make_request(10, model="slow", priority=2)) == pytest.approx(200.0)


def test_kinds_that_cannot_share_a_batch_are_bounded(scheduler: Scheduler) -> None:
    for number in range(MAX_GROUPS):
        scheduler.submit(make_request(1, params={"p": number}, peer=b"%d" % number))
    with pytest.raises(Overloaded, match=r"\(1024 different parameters or shapes\)"):
        scheduler.submit(make_request(1, params={"p": -1}))
    scheduler.submit(make_request(1, params={"p": 0}))


def test_kinds_of_one_sender_leave_room_for_those_of_others(scheduler: Scheduler) -> None:
    with pytest.raises(Overloaded, match="of which this sender holds 768"):
        for number in range(MAX_GROUPS):
            scheduler.submit(make_request(1, params={"p": number}))
    scheduler.submit(make_request(1, params={"p": 0}))
    scheduler.submit(make_request(1, params={"p": -1}, peer=b"other"))
    run_all(scheduler)
    scheduler.submit(make_request(1, params={"p": -1}))


@pytest.mark.parametrize(("priority", "items"), [(0, 1750), (1, 1500), (2, 1000)])
def test_one_sender_shuts_nobody_out(scheduler: Scheduler, priority: int, items: int) -> None:
    with pytest.raises(Overloaded, match=rf"max_queue_items = 2000, of which this sender holds {items}"):
        for _ in range(2000):
            submit(scheduler, 1, priority=priority, deadline=90_000.0)
    assert scheduler.items == items
    submit(scheduler, *[1] * 200, peer=b"other", model="other")


def test_its_bytes_leave_room_for_others_too() -> None:
    scheduler = Scheduler(Clock(), max_items=2000, max_bytes=100)
    scheduler.set_policy("m", Policy(10, 10))
    with pytest.raises(Overloaded, match="max_queue_bytes = 100, of which this sender holds 75"):
        for _ in range(100):
            submit(scheduler, 1)
    submit(scheduler, *[1] * 25, peer=b"other")


def test_an_answered_request_holds_nothing(scheduler: Scheduler) -> None:
    request = submit(scheduler, 1, 2, 3)
    request.take(0, dict(request.inputs), 1)
    scheduler.close(request)
    assert (request.inputs, request.parts, list(request.cumulative)) == ({}, [], [])


def test_groups_of_closed_requests_leave_room_for_others(scheduler: Scheduler) -> None:
    closed = [submit(scheduler, 1, params={"n": number}, peer=b"%d" % number) for number in range(MAX_GROUPS)]
    for request in closed:
        scheduler.close(request)
    submit(scheduler, 1, params={"n": -1})
