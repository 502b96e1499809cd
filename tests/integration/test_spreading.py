"""A real Gunicorn's workers share the connections: of clients that come after others have left, and with new workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from free_port import free_port

from gpu_server.autoscale.loop import BETWEEN_SIGNALS_S

WORKERS = 4
LIMIT_S = 30.0
APP = """
import json, os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(os.getpid()).encode()]
"""


class Web(NamedTuple):
    """Workers with this package's settings, which serve their process ids."""

    master: int
    port: int


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "pids.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "python:web.serving", "--chdir", str(tmp_path)]
    command += ["-b", f"127.0.0.1:{port}", "-w", str(WORKERS), "pids:app"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield Web(process.pid, port)
    finally:
        process.terminate()
        process.wait(30)


def ask(client: http.client.HTTPConnection) -> int:
    """The worker at the other end of a connection, which is made anew where it has ended."""
    client.request("GET", "/")
    return int(json.loads(client.getresponse().read()))


def until_all_serve(port: int) -> None:
    """Ask over new connections until each worker has answered."""
    seen: set[int] = set()
    give_up = time.monotonic() + LIMIT_S
    while len(seen) < WORKERS:
        assert time.monotonic() < give_up, f"{len(seen)} of {WORKERS} workers answered"
        with (
            suppress(ConnectionRefusedError),
            closing(http.client.HTTPConnection("127.0.0.1", port)) as client,
        ):
            seen.add(ask(client))


@contextmanager
def connected(port: int, connections: int) -> Iterator[list[http.client.HTTPConnection]]:
    with ExitStack() as exits:
        yield [
            exits.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port)))
            for _ in range(connections)
        ]


def until_shared(clients: list[http.client.HTTPConnection], workers: int) -> None:
    """Ask over kept connections until no worker has more than its share of them."""
    mean = len(clients) / workers
    give_up = time.monotonic() + LIMIT_S
    held: Counter[int] = Counter()
    while not held or max(held.values()) > mean + max(1.0, mean / 8):
        assert time.monotonic() < give_up, f"{len(clients)} connections stay at {held.values()}"
        held = Counter(ask(client) for client in clients)


def test_the_next_clients_are_shared_as_well(web: Web) -> None:
    until_all_serve(web.port)
    for connections in (48, 12):
        with connected(web.port, connections) as clients:
            until_shared(clients, WORKERS)


def test_a_worker_that_is_added_gets_its_share_of_the_connections_there_are(web: Web) -> None:
    until_all_serve(web.port)
    with connected(web.port, 48) as clients:
        until_shared(clients, WORKERS)
        for _ in range(2):
            os.kill(web.master, signal.SIGTTIN)
            time.sleep(BETWEEN_SIGNALS_S)
        until_shared(clients, WORKERS + 2)
