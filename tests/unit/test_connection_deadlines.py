"""Deadlines of a connection's calls: what a request says of its own, and what is left of those that have ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from hand_server import HandServer, ask, greet
from running_daemon import until

from gpu_server import pending
from gpu_server.connection import Connection
from gpu_server.errors import DeadlineExceeded, Unavailable
from gpu_server.testing import FakeServer

pytestmark = pytest.mark.usefixtures("first_deadlines")


@pytest.fixture
def server(serve: Callable[[], HandServer]) -> HandServer:
    return serve()


@pytest.fixture
def first_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request says its time-out, however long a slow machine took to send it."""
    monkeypatch.setattr(pending, "STALE_S", 1e6)


def test_the_deadline_ends_a_call_and_the_late_reply_is_dropped_and_counted(
    server: HandServer, connection: Connection
) -> None:
    greet(connection, server)
    started = time.monotonic()
    future = ask(connection, 0.1)
    peer, header = server.receive()
    assert header.deadline_ms == 100
    with pytest.raises(DeadlineExceeded):
        future.result(20)
    assert 0.1 <= time.monotonic() - started < 10
    server.answer(peer, header.id)
    until(lambda: connection.late_replies == 1, "the late reply", 10)
    assert len(connection._pending) == 0


@pytest.mark.parametrize("timeout_s", [1e9, float("inf")])
def test_a_time_out_beyond_the_protocols_is_its_longest(
    server: HandServer, connection: Connection, timeout_s: float
) -> None:
    ask(connection, timeout_s)
    assert server.receive()[1].deadline_ms == 86_400_000


def test_where_somebody_listens_a_call_waits_for_its_deadline(
    own_endpoint: str, connection: Connection
) -> None:
    """As with a socket that the service manager holds while the daemon starts; nothing was sent, so it may be repeated."""
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(own_endpoint.removeprefix("ipc://"))
        held.listen(1)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no gpu-server daemon answers"):
            ask(connection, 1.5).result(10)
        assert time.monotonic() - started >= 1.5


def test_answered_calls_leave_no_deadlines_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MIN_SWEEP", 16)
    with FakeServer() as fake:
        connection = Connection(fake.endpoint)
        for _ in range(100):
            ask(connection, 3600, op="status").result(10)
        assert len(connection._pending._deadlines) <= 17
        connection.close()


def test_after_a_sweep_deadlines_still_hold(
    server: HandServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MIN_SWEEP", 0)
    greet(connection, server)
    late, *others = [ask(connection, 0.5 if number == 0 else 60) for number in range(9)]
    for _ in range(9):
        peer, header = server.receive()
        if header.deadline_ms != 500:
            server.answer(peer, header.id)
    for future in others:
        assert future.result(10)
    with pytest.raises(DeadlineExceeded):
        late.result(10)


def test_calls_that_ended_before_they_were_sent_leave_nothing_behind(
    server: HandServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a daemon that hangs for hours under a web tier that goes on asking."""
    monkeypatch.setattr(pending, "MIN_SWEEP", 16)
    first = ask(connection, 60)
    peer, greeting = server.receive_first()
    for _ in range(20):
        for future in [ask(connection, 0.001) for _ in range(20)]:
            with pytest.raises(Unavailable, match="until its deadline and was not sent"):
                future.result(10)
    until(lambda: len(connection._outbox) <= 16, "the sweep", 10)
    server.answer(peer, greeting.id)
    peer, header = server.receive_first()
    server.answer(peer, header.id)
    assert first.result(10).header.id == header.id
