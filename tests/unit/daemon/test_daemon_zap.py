"""Whose key opens the daemon's socket, with real handshakes on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from daemon_fakes import Clock

from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.router import Router
from gpu_server.daemon.zap import Authenticator
from gpu_server.errors import ConfigError
from gpu_server.wire import Limits

Socket = zmq.Socket[bytes]
FRAME = 5000


class World:
    """A guarded router, its list of clients, and clients."""

    def __init__(self, context: zmq.Context[Socket], folder: Path) -> None:
        self.list = folder / "clients"
        self.list.touch()
        self.metrics, self.clock = Metrics(), Clock()
        self.seen: list[list[bytes]] = []
        self.authenticator = Authenticator(context, self.list, self.metrics, self.clock)
        public, secret = zmq.curve_keypair()
        self._server = public
        self.router = Router(
            context, "tcp://127.0.0.1:*", Limits(max_frame_bytes=FRAME, max_request_bytes=4 * FRAME), self.metrics,
            max_peer_bytes=100_000, on_gone=lambda peer: None, secret_key=secret,
        )  # fmt: skip
        self._outside: zmq.Context[Socket] = zmq.Context()

        self._poller = zmq.Poller()
        for socket in (self.authenticator.socket, self.router.socket):
            self._poller.register(socket, zmq.POLLIN)

    def turn(self) -> None:
        """A turn of the daemon's loop."""
        self._poller.poll(20)
        self.authenticator.receive()
        self.router.receive(lambda peer, frames, whole: self.seen.append(list(frames)))

    def allow(self, *keys: bytes) -> None:
        self.list.write_bytes(b"".join(key + b" someone\n" for key in keys))

    def sends(self, pair: tuple[bytes, bytes], message: bytes = b"hello") -> bool:
        """Whether a client with this pair gets a message through; it is closed again."""
        with self._outside.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.curve_publickey, socket.curve_secretkey = pair
            socket.curve_serverkey = self._server
            monitor: Socket = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            socket.connect(self.router.socket.get_string(zmq.LAST_ENDPOINT))
            socket.send_multipart([b"", message])
            before = len(self.seen)
            for _ in range(500):
                self.turn()
                if len(self.seen) > before or monitor.poll(0):
                    break
            socket.disable_monitor()
            monitor.close(linger=0)
        return self.seen[before:] == [[b"", message]]

    def close(self) -> None:
        self._outside.destroy(linger=0)
        self.authenticator.close()
        self.router.close(0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with zmq.Context() as context:
        made = World(context, tmp_path)
        yield made
        made.close()


def test_listed_keys_connect_and_others_are_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    listed, other = zmq.curve_keypair(), zmq.curve_keypair()
    world.allow(listed[0])
    with caplog.at_level(logging.INFO):
        assert world.sends(listed)
        assert not world.sends(other)
    assert world.metrics.dropped["key_refused"] == 1
    said = {record.message: record.__dict__ for record in caplog.records}
    assert said["client connected"]["client"] == "someone"
    refused = said["client refused: its key is not listed"]
    assert (refused["key"], refused["address"]) == (other[0].decode(), "127.0.0.1")


def test_the_log_is_not_flooded_with_refusals(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert not world.sends(zmq.curve_keypair())
    assert len(caplog.records) == 1
    world.clock.now += 2
    assert not world.sends(zmq.curve_keypair())
    assert len(caplog.records) == 2
    assert world.metrics.dropped["key_refused"] == 4


def test_the_list_is_read_again_when_it_has_changed(world: World) -> None:
    first, second = zmq.curve_keypair(), zmq.curve_keypair()
    assert not world.sends(first)
    world.allow(first[0])
    assert world.sends(first)
    world.allow(second[0])
    assert world.sends(second)
    assert not world.sends(first)
    world.allow()
    assert not world.sends(second)


def test_a_list_that_cannot_be_read_leaves_the_keys_from_before(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pair = zmq.curve_keypair()
    world.allow(pair[0])
    assert world.sends(pair)
    world.list.write_text("rubbish\n")
    assert world.sends(pair)
    world.list.unlink()
    assert world.sends(pair)
    assert world.sends(pair)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.__dict__["reason"].rpartition(": ")[2] for record in errors] == [
        "not a key of 40 characters (gpu-server keys makes them)", "No such file or directory",
    ]  # fmt: skip


def test_a_daemon_does_not_start_with_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with zmq.Context() as context, pytest.raises(ConfigError, match="No such file"):
        Authenticator(context, tmp_path / "none", Metrics())


def test_a_frame_may_be_as_large_as_without_keys(world: World) -> None:
    pair = zmq.curve_keypair()
    world.allow(pair[0])
    assert world.sends(pair, b"x" * FRAME)
