"""Tries to connect: what a client concludes from them, and that no host's name keeps it waiting."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import zmq
from hand_server import ask

from gpu_server import endpoint as endpoints
from gpu_server.connection import Connection
from gpu_server.errors import Unavailable
from gpu_server.tries import Tries

ENDPOINT = "tcp://gpu:1"
NAMED = "gpu.invalid"
CLOSED, RETRIED = zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED
LOST, UP = zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED


@pytest.mark.parametrize(
    ("events", "failed", "found"),
    [
        ([], False, True),
        ([RETRIED], True, False),
        ([CLOSED, RETRIED], True, True),
        ([CLOSED, RETRIED, RETRIED], True, False),
        ([RETRIED, CLOSED, RETRIED], True, True),
        ([RETRIED, UP], False, True),
        ([UP, LOST, RETRIED], False, True),
        ([UP, LOST, RETRIED, RETRIED], True, False),
        ([UP, LOST, RETRIED, CLOSED, RETRIED], True, True),
    ],
)
def test_what_libzmq_tells_of_them(events: list[int], failed: bool, found: bool) -> None:
    tries = Tries(ENDPOINT)
    for event in events:
        tries.saw(event)
    assert (tries.failed, "cannot be found" not in tries.error().message) == (failed, found)


def test_a_failure_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = [True, False]
    monkeypatch.setattr(endpoints, "listens", lambda endpoint: listening.pop(0))
    tries = Tries("ipc:///s")
    assert not tries.are_hopeless()
    for hopeless in (False, True):
        tries.saw(CLOSED)
        assert tries.are_hopeless() == hopeless
    assert listening == []


def test_a_call_that_waited_hears_so_and_one_that_did_not_how_to_start_the_daemon() -> None:
    tries = Tries(ENDPOINT)
    assert "start it with: gpu-server start" in tries.error().message
    assert "until its deadline and was not sent" in tries.error(late=True).message
    assert tries.error().details == {"endpoint": ENDPOINT}


def test_a_host_that_cannot_be_found_is_told_at_once() -> None:
    endpoint = f"tcp://{'x' * 64}.example:1"
    with closing(Connection(endpoint)) as connection:
        for _ in range(3):
            with pytest.raises(Unavailable, match=r"^the host of tcp://x+\.example:1 cannot be found$"):
                ask(connection, 60).result(10)


@pytest.fixture
def stuck_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever looks a name up through Python waits until the test has ended; addresses need no looking up."""
    ended, look_up = threading.Event(), socket.getaddrinfo

    def wait(host: str, *rest: Any, **options: Any) -> object:
        if host == NAMED:
            ended.wait(60)
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield
    ended.set()


@pytest.mark.usefixtures("stuck_resolver")
def test_a_resolver_that_takes_its_time_delays_neither_a_call_nor_its_deadline() -> None:
    with closing(Connection(f"tcp://{NAMED}:1")) as connection:
        started = time.monotonic()
        futures = [ask(connection, 0.5) for _ in range(3)]
        for future in futures:
            with pytest.raises(Unavailable, match=NAMED):
                future.result(20)
        assert time.monotonic() - started < 10
