"""A real Gunicorn's workers share the connections of clients that come after others have left."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

WORKERS = 4
LIMIT_S = 30.0
APP = """
import json, os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(os.getpid()).encode()]
"""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where workers with this package's settings serve their process ids."""
    (tmp_path / "pids.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "gunicorn", "-c", "python:web.serving", "--chdir", str(tmp_path)]
    command += ["-b", f"127.0.0.1:{port}", "-w", str(WORKERS), "pids:app"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield port
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


def test_the_next_clients_are_shared_as_well(port: int) -> None:
    until_all_serve(port)
    for connections in (48, 12):
        with ExitStack() as exits:
            clients = [
                exits.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port)))
                for _ in range(connections)
            ]
            mean = connections / WORKERS
            give_up = time.monotonic() + LIMIT_S
            held: Counter[int] = Counter()
            while not held or max(held.values()) > mean + max(1.0, mean / 8):
                assert time.monotonic() < give_up, f"{connections} connections stay at {held.values()}"
                held = Counter(ask(client) for client in clients)
