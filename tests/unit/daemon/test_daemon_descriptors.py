"""New connections are ended while few descriptors are left, and nothing else is."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_fakes import Clock

from gpu_server.daemon import descriptors
from gpu_server.daemon.descriptors import SPARE, Gate


class World:
    """A listener, a gate that is almost shut, and what it refused."""

    def __init__(self, path: Path, limit: int) -> None:
        self.clock = Clock()
        self.refused = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.endpoint = f"ipc://{path}"
        self.gate = Gate(self.endpoint, self._refuse, limit, self.clock)

    def _refuse(self) -> None:
        self.refused += 1

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """The client's side and ours."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.listener.getsockname())
        return client, self.listener.accept()[0]


@pytest.fixture
def full(socket_folder: Path) -> Iterator[World]:
    """Every descriptor is one too many."""
    world = World(socket_folder / "full", limit=2)
    with world.listener:
        yield world


def test_a_connection_too_many_is_ended_and_its_descriptor_left_to_libzmq(full: World) -> None:
    client, ours = full.connection()
    with client, ours:
        full.gate.accepted(ours.fileno())
        assert (client.recv(1), full.refused) == (b"", 1)
        os.fstat(ours.fileno())


def test_with_enough_left_connections_stand(socket_folder: Path) -> None:
    world = World(socket_folder / "roomy", limit=4096)
    client, ours = world.connection()
    with world.listener, client, ours:
        world.gate.accepted(ours.fileno())
        ours.sendall(b"still here")
        assert (client.recv(20), world.refused) == (b"still here", 0)


def test_what_took_the_number_of_a_closed_connection_is_not_touched(full: World) -> None:
    one, other = socket.socketpair()
    with one, other, open(os.devnull) as file:
        free = os.dup(file.fileno())
        os.close(free)
        for number in (one.fileno(), file.fileno(), free):
            full.gate.accepted(number)
        one.sendall(b"untouched")
        assert other.recv(20) == b"untouched"
    assert full.refused == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"])
def test_a_tcp_connection_is_known_by_its_port(host: str, request: pytest.FixtureRequest) -> None:
    if ":" in host:
        request.getfixturevalue("needs_ipv6")
    refused: list[None] = []
    own, family = ("::1", socket.AF_INET6) if ":" in host else ("127.0.0.1", socket.AF_INET)
    with socket.create_server((own, 0), family=family) as listener:
        name = listener.getsockname()
        gate = Gate(f"tcp://{host}:{name[1]}", lambda: refused.append(None), limit=2)
        with socket.create_connection(name[:2], timeout=5) as client:
            ours, _ = listener.accept()
            gate.accepted(client.fileno())
            assert refused == []
            gate.accepted(ours.fileno())
            assert (client.recv(1), refused) == (b"", [None])
            ours.close()


def test_it_is_said_once_in_a_while(full: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            client, ours = full.connection()
            full.gate.accepted(ours.fileno())
            client.close()
            ours.close()
        assert (len(caplog.records), full.refused) == (1, 3)
        full.clock.advance(60)
        client, ours = full.connection()
        full.gate.accepted(ours.fileno())
        assert len(caplog.records) == 2
        client.close()
        ours.close()


@pytest.mark.parametrize(("hard", "said"), [(2 * SPARE - 1, 1), (2 * SPARE, 0)])
def test_the_limit_is_raised_and_a_low_one_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hard: int, said: int
) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    descriptors.raise_limit()
    assert (made, len(caplog.records)) == ([(hard, hard)], said)
