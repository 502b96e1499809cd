"""A fake daemon, a client of it, and the app over both, one of each for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeServer
from web import create_app
from web.settings import Settings


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.endpoint, timeout_s=10) as made:
        yield made


@pytest.fixture(scope="module")
def http(client: Client) -> FlaskClient:
    return create_app(client, Settings(timeout_s=5, max_body_bytes=64 << 10)).test_client()


@pytest.fixture(scope="module")
def down() -> Iterator[FlaskClient]:
    """The app where no daemon runs."""
    with Client("ipc:///nonexistent/gpu-server.sock", timeout_s=60) as made:
        yield create_app(made, Settings(timeout_s=60)).test_client()
