"""What every unit test has: nothing that happens because time has passed; and fake daemons with their clients."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq
from hand_server import HandServer
from hypothesis import HealthCheck, settings

from gpu_server import calls
from gpu_server.client import Client
from gpu_server.connection import Connection
from gpu_server.testing import FakeServer

# Property tests are bounded by their number of examples; wall-clock limits fail on busy machines.
settings.register_profile(
    "by-count", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("by-count")


@pytest.fixture
def needs_ipv6() -> None:
    """Skips where the machine has no IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6")


@pytest.fixture(autouse=True)
def models_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask for the models again after two seconds, which a slow machine may take for any test."""
    monkeypatch.setattr(calls, "HELLO_AGE_S", 1e6)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.endpoint, timeout_s=10) as made:
        yield made


@pytest.fixture
def connection(own_endpoint: str) -> Iterator[Connection]:
    with closing(Connection(own_endpoint)) as made:
        yield made


@pytest.fixture
def serve(own_endpoint: str) -> Iterator[Callable[[], HandServer]]:
    """Start a server by hand, as often as one is needed; all are closed after the test."""
    made: list[HandServer] = []

    def start() -> HandServer:
        made.append(HandServer(context, own_endpoint))
        return made[-1]

    with zmq.Context() as context:
        yield start
        for server in made:
            server.socket.close()
