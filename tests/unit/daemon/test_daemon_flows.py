"""Whose turn it is: order of arrival for those with little outstanding, fair shares for those with much."""

from __future__ import annotations

import pytest
from daemon_fakes import make_request

from gpu_server.daemon.flows import BULK, PRIORITY_WEIGHT, PROMPT, Flows
from gpu_server.daemon.request import Request

BUDGET = 100


def enter(flows: Flows, cost: int, peer: bytes = b"peer", priority: int = 1) -> Request:
    request = make_request(cost, peer=peer, priority=priority)
    flows.enter(request, BUDGET)
    return request


def test_what_fits_a_few_batches_is_prompt_and_in_order_of_arrival() -> None:
    flows = Flows()
    entered = [enter(flows, cost, peer) for cost, peer in ((90, b"a"), (1, b"b"), (50, b"c"), (90, b"a"))]
    assert {request.tag for request in entered} == {1.0}
    assert not any(request.bulk for request in entered)


def test_a_flow_with_more_outstanding_sends_bulk_work() -> None:
    flows = Flows()
    entered = [enter(flows, 100) for _ in range(5)]
    assert [request.bulk for request in entered] == [False] * PROMPT + [True] * (5 - PROMPT)
    assert [request.tag for request in entered] == [1, 1, 4, 5, 6]


def test_one_request_of_many_batches_is_bulk_work() -> None:
    assert enter(Flows(), PROMPT * BUDGET + 1).bulk
    assert not enter(Flows(), PROMPT * BUDGET).bulk


@pytest.mark.parametrize("other", [{"peer": b"other"}, {"cost": 1}, {"priority": 0}])
def test_peers_sizes_and_priorities_are_flows_of_their_own(other: dict[str, int]) -> None:
    flows = Flows()
    for _ in range(10):
        enter(flows, 100)
    assert not enter(flows, **{"cost": 100, **other}).bulk  # type: ignore[arg-type]
    assert len(flows) == 2


def test_small_requests_are_of_one_size() -> None:
    flows = Flows()
    for cost in (1, 2, 5, 12):
        enter(flows, cost)
    assert len(flows) == 1


def test_priority_scales_the_place_and_the_last_class_is_bulk_work() -> None:
    flows = Flows()
    entered = [enter(flows, 1, priority=priority) for priority in range(3)]
    assert [request.tag for request in entered] == list(PRIORITY_WEIGHT)
    assert [request.bulk for request in entered] == [False, False, True]
    assert entered[BULK].bulk


def test_bulk_work_comes_after_what_arrives_before_its_share_was_served() -> None:
    flows = Flows()
    last = [enter(flows, 100) for _ in range(10)][-1]
    others = [enter(flows, 1, peer=b"%d" % n) for n in range(3)]
    before = 0
    while enter(flows, 1, peer=b"late").tag <= last.tag:
        flows.served(1.0)
        before += 1
    assert before == pytest.approx((last.tag - others[0].tag) * 5, abs=5)


def test_elders_of_a_flow_stay_first_when_others_of_it_leave() -> None:
    flows = Flows()
    entered = [enter(flows, 100) for _ in range(10)]
    for gone in entered[3:9]:
        flows.leave(gone)
    assert enter(flows, 100).tag == entered[9].tag


def test_a_prompt_request_does_not_stand_behind_work_that_is_gone() -> None:
    flows = Flows()
    entered = [enter(flows, 100) for _ in range(1000)]
    for gone in entered[:-1]:
        flows.leave(gone)
    late = enter(flows, 100)
    assert not late.bulk
    assert late.tag == 1 + PROMPT
    assert enter(flows, 100).tag == 4


def test_an_empty_flow_is_forgotten() -> None:
    flows = Flows()
    for request in [enter(flows, cost) for cost in (100, 100, 100, 7)]:
        flows.leave(request)
    assert len(flows) == 0
    assert enter(flows, 100).tag == 1.0
