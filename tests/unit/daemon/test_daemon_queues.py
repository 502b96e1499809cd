"""A queue keeps no more than what waits in it, even while nobody takes anything out."""

from __future__ import annotations

from daemon_fakes import make_request

from gpu_server.daemon.filling import Policy
from gpu_server.daemon.queues import SWEEP_FROM, ModelWork, Queue


def test_closed_requests_are_not_kept_until_the_head_is_asked_for() -> None:
    queue = Queue(ModelWork(Policy(10, 10)), bulk=False, suspect=False, peer=b"p")
    kept = [make_request(1) for _ in range(10)]
    for number in range(5000):
        request = kept[number // 500] if number % 500 == 0 else make_request(1)
        queue.push((float(number), number, request))
        request.closed = request not in kept
    assert len(queue.heap) <= SWEEP_FROM + 1
    for request in kept:
        assert queue.head() is request
        request.closed = True
    assert queue.head() is None
