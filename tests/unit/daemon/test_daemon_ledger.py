"""Open requests are found by connection, id and deadline, each until its reply."""

from __future__ import annotations

import math

from daemon_fakes import make_request

from gpu_server.daemon.ledger import Ledger
from gpu_server.daemon.request import Request


def close(ledger: Ledger, request: Request) -> None:
    request.closed = True
    ledger.remove(request)


def test_a_request_is_found_until_it_is_removed() -> None:
    ledger, request = Ledger(), make_request(1)
    ledger.add(request)
    assert len(ledger) == 1
    assert (request.peer, request.id) in ledger
    assert ledger.get(request.peer, request.id) is request
    assert ledger.get(b"another", request.id) is None
    close(ledger, request)
    assert len(ledger) == 0
    assert ledger.get(request.peer, request.id) is None
    ledger.remove(request)


def test_requests_of_one_connection() -> None:
    ledger = Ledger()
    mine = [make_request(1, peer=b"a") for _ in range(2)]
    other = make_request(1, peer=b"b")
    for request in (*mine, other):
        ledger.add(request)
    assert ledger.of_peer(b"a") == mine
    assert ledger.all() == [*mine, other]
    assert ledger.of_peer(b"c") == []


def test_each_expires_once_and_in_order() -> None:
    ledger = Ledger()
    late, soon, closed = (make_request(1, deadline=d) for d in (30.0, 10.0, 20.0))
    for request in (late, soon, closed):
        ledger.add(request)
    close(ledger, closed)
    assert ledger.next_deadline() == 10.0
    assert ledger.expired(9.9) == []
    assert ledger.expired(25.0) == [soon]
    assert ledger.expired(25.0) == []
    assert ledger.next_deadline() == 30.0
    assert ledger.expired(30.0) == [late]
    assert ledger.next_deadline() == math.inf


def test_closed_requests_are_not_kept_until_their_deadline() -> None:
    ledger = Ledger()
    kept = make_request(1, deadline=1e9)
    ledger.add(kept)
    for _ in range(5000):
        request = make_request(1, deadline=1e9)
        ledger.add(request)
        close(ledger, request)
    assert len(ledger._deadlines) <= 1025
    assert ledger.expired(1e9) == [kept]
