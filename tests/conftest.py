"""What every test has: an endpoint of its own, no settings from outside, and daemons that end with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from running_daemon import RunningDaemon, StartDaemon


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A private folder with a path short enough for a socket (pytest's own are not)."""
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def own_endpoint(monkeypatch: pytest.MonkeyPatch, socket_folder: Path) -> str:
    """Clear every GPU_SERVER_ setting and point clients and daemons at a socket that only this test has."""
    for name in [n for n in os.environ if n.startswith("GPU_SERVER_")]:
        monkeypatch.delenv(name)
    endpoint = f"ipc://{socket_folder}/s"
    monkeypatch.setenv("GPU_SERVER_ENDPOINT", endpoint)
    return endpoint


@pytest.fixture
def silent(own_endpoint: str) -> Iterator[str]:
    """An endpoint where requests are taken and nothing is ever answered."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind(own_endpoint)
        yield own_endpoint


@pytest.fixture
def daemon(own_endpoint: str) -> Iterator[StartDaemon]:
    """Start daemons as users do, `daemon("module:Class", "--flag", "value")`; all are ended after the test."""
    started: list[RunningDaemon] = []

    def start(*arguments: str, endpoint: str = own_endpoint, **options: Any) -> RunningDaemon:
        started.append(RunningDaemon(endpoint, *arguments, **options))
        return started[-1]

    yield start
    for running in started:
        running.kill()
