"""A real Gunicorn with threads: clients that say nothing, or stay when they should leave, cost nobody else anything."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from running_gunicorn import RunningGunicorn

from gpu_server.testing import FakeServer

THREADS = 8
LIMIT_S = 20.0
"""Far above what a request takes here, far below what all these clients together cost a Gunicorn that waits for each."""
LIVEZ = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
HALF_A_BODY = (
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RunningGunicorn]:
    """One worker, in which a client that stops sending is given up after a second."""
    settings = tmp_path / "settings.py"
    settings.write_text("from web.serving import *\nfrom web import threaded\nthreaded.SILENCE_S = 1\n")
    options = ("-c", str(settings), "--threads", str(THREADS))
    with FakeServer() as daemon, RunningGunicorn(daemon.endpoint, *options, workers=1) as running:
        yield running


def connected(web: RunningGunicorn, clients: ExitStack, says: bytes = b"") -> socket.socket:
    client = clients.enter_context(socket.socket(socket.AF_UNIX))
    client.settimeout(LIMIT_S)
    client.connect(web.path)
    client.sendall(says)
    return client


def answer(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    got = b""
    while part := client.recv(4096):
        got += part
    return got


def assert_serves(web: RunningGunicorn) -> None:
    with ExitStack() as clients:
        assert answer(connected(web, clients, LIVEZ)).startswith(b"HTTP/1.1 200")


def test_connections_that_ask_nothing_take_no_thread(web: RunningGunicorn) -> None:
    with ExitStack() as clients:
        silent = [connected(web, clients) for _ in range(5 * THREADS)]
        assert_serves(web)
        silent[-1].sendall(LIVEZ)
        assert answer(silent[-1]).startswith(b"HTTP/1.1 200")


def test_clients_that_do_not_close_hold_nobody_up(web: RunningGunicorn) -> None:
    with ExitStack() as clients:
        staying = [connected(web, clients, LIVEZ) for _ in range(3 * THREADS)]
        for client in staying:
            assert client.recv(12) == b"HTTP/1.1 200"
        assert_serves(web)


@pytest.mark.parametrize("says", [HALF_A_BODY, LIVEZ[:-4]], ids=["body", "headers"])
def test_who_stops_in_the_middle_of_a_request_is_given_up(web: RunningGunicorn, says: bytes) -> None:
    with ExitStack() as clients:
        silent = [connected(web, clients, says) for _ in range(2 * THREADS)]
        assert_serves(web)
        for client in silent:
            assert not answer(client).startswith(b"HTTP/1.1 200")
    assert not any("Traceback" in line for line in web.log)


def test_ctrl_c_is_for_the_master_to_hand_on(web: RunningGunicorn) -> None:
    assert_serves(web)
    (worker,) = web.workers()
    os.kill(worker, signal.SIGINT)
    assert_serves(web)
    web.process.send_signal(signal.SIGINT)
    assert web.process.wait(LIMIT_S) == 0
    assert not any("SIGKILL" in line for line in web.log)


def test_a_stop_does_not_wait_for_who_asks_nothing(web: RunningGunicorn) -> None:
    with ExitStack() as clients:
        silent = connected(web, clients)
        assert_serves(web)
        web.process.send_signal(signal.SIGTERM)
        assert web.process.wait(LIMIT_S) == 0
        assert answer(silent) == b""
