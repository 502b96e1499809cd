"""A real Gunicorn with threads: clients that say nothing, take nothing, or stay, cost nobody else anything."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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


TEXTS = json.dumps({"inputs": ["a text"] * 2000}).encode()
MUCH = (
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (
        len(TEXTS),
        TEXTS,
    )
)
"""A request whose answer, and the next one's, do not fit the buffers of a socket that nobody reads."""


@contextmanager
def running(folder: Path, *options: str) -> Iterator[RunningGunicorn]:
    """One worker, with Gunicorn's own log, in which a client that is silent is given up after a second."""
    settings = folder / "settings.py"
    settings.write_text("from web.serving import *\nfrom web import silence\nsilence.SILENCE_S = 1\n")
    options = ("-c", str(settings), "--threads", str(THREADS), *options)
    own = {"GPU_SERVER_WEB_LOG_FORMAT": "gunicorn"}
    with FakeServer() as daemon, RunningGunicorn(daemon.endpoint, *options, workers=1, **own) as web:
        yield web


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RunningGunicorn]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[RunningGunicorn]:
    """The same with a certificate."""
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    made_of = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x")
    subprocess.run(
        ["openssl", "req", "-x509", *made_of, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    with running(tmp_path, "--keyfile", key, "--certfile", certificate) as made:
        yield made


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
        staying = [connected(web, clients, LIVEZ) for _ in range(THREADS)]
        for client in staying:
            assert client.recv(12) == b"HTTP/1.1 200"
        assert_serves(web)


@pytest.mark.parametrize(
    ("says", "answered"), [(HALF_A_BODY, b"HTTP/1.1 400"), (LIVEZ[:-4], b"")], ids=["body", "headers"]
)
def test_who_stops_in_the_middle_of_a_request_is_given_up(
    web: RunningGunicorn, says: bytes, answered: bytes
) -> None:
    with ExitStack() as clients:
        silent = [connected(web, clients, says) for _ in range(THREADS)]
        assert_serves(web)
        for client in silent:
            got = answer(client)
            assert got[:12] == answered
            assert (b"connection: close" in got.lower()) == bool(answered)
    assert not any("Traceback" in line for line in web.log)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
@pytest.mark.parametrize("says", [HALF_A_BODY, b"\x16\x03\x01"], ids=["body", "hello"])
def test_under_tls_too(tls: RunningGunicorn, says: bytes) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with ExitStack() as clients:

        def shake_hands() -> socket.socket:
            return clients.enter_context(context.wrap_socket(connected(tls, clients)))

        for _ in range(THREADS):
            if says == HALF_A_BODY:
                shake_hands().sendall(says)
            else:
                connected(tls, clients, says)
        client = shake_hands()
        client.sendall(LIVEZ)
        assert answer(client).startswith(b"HTTP/1.1 200")
    assert not any("Traceback" in line for line in tls.log)


def test_who_takes_no_answer_is_given_up(web: RunningGunicorn) -> None:
    with ExitStack() as clients:
        deaf = [connected(web, clients) for _ in range(THREADS)]
        for client in deaf:
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.sendall(MUCH * 5)
        for client in deaf:
            closed = select.poll()
            # That the server has closed is told in any case, and nothing else is asked for.
            closed.register(client, 0)
            assert closed.poll(LIMIT_S * 1e3) == [(client.fileno(), select.POLLHUP)]
    assert not any("Traceback" in line for line in web.log)


def test_without_keep_alive_all_are_answered(tmp_path: Path) -> None:
    with running(tmp_path, "--keep-alive", "0") as web:
        for _ in range(5):
            assert_serves(web)


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
