"""Findings on socket and daemon: rights, leftovers, state, versions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from gpu_server import Client
from gpu_server._version import __version__
from gpu_server.checks import daemon
from gpu_server.daemon.instance import Instance
from gpu_server.testing import FakeServer
from gpu_server.wire import Limits
from gpu_server.wire.documents import EngineStatus, Hello, QueueStatus, Status


@contextmanager
def listener(path: Path, mode: int) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        path.chmod(mode)
        yield


def test_a_daemon_that_does_not_run_is_a_warning_with_the_command(own_endpoint: str) -> None:
    finding = daemon.socket(own_endpoint)
    assert finding.severity == "warning"
    assert "gpu-server start" in finding.fix


@pytest.mark.parametrize(
    ("mode", "folder", "severity"),
    [(0o660, 0o750, "ok"), (0o660, 0o755, "ok"), (0o666, 0o755, "warning"), (0o666, 0o750, "ok")],
)
def test_who_may_open_the_socket(
    own_endpoint: str, socket_folder: Path, mode: int, folder: int, severity: str
) -> None:
    socket_folder.chmod(folder)
    with listener(socket_folder / "s", mode):
        finding = daemon.socket(own_endpoint)
    assert finding.severity == severity
    assert f"mode {mode:04o}" in finding.found


def test_what_is_no_socket_or_no_endpoint(own_endpoint: str, socket_folder: Path) -> None:
    (socket_folder / "s").touch()
    assert "is no socket" in daemon.socket(own_endpoint).found
    assert daemon.socket("http://here").severity == "error"
    assert daemon.socket("tcp://127.0.0.1:9").severity == "ok"
    assert "or GPU_SERVER_INSECURE_TCP=1" in daemon.socket("tcp://192.0.2.1:9").found


def test_keys_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_SERVER_CURVE_CLIENT_KEY_FILE", "nowhere.key")
    monkeypatch.setenv("GPU_SERVER_CURVE_SERVER_KEY_FILE", "nowhere.pub")
    finding = daemon.socket("tcp://192.0.2.1:9")
    assert (finding.check, finding.severity) == ("keys", "error")
    assert finding.found == "nowhere.key: No such file or directory"


def test_a_daemon_that_wants_a_key() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.curve_server, router.curve_secretkey = 1, zmq.curve_keypair()[1]
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with Client(f"tcp://127.0.0.1:{port}") as client:
            (finding,) = daemon.serving(client)
    assert (finding.check, finding.severity) == ("keys", "error")
    assert "wants a key" in finding.found


def test_the_socket_of_a_killed_daemon_is_a_leftover(own_endpoint: str, socket_folder: Path) -> None:
    assert daemon.leftovers(own_endpoint) is None
    running = Instance(own_endpoint)
    with listener(socket_folder / "s", 0o660):
        assert daemon.leftovers(own_endpoint) is None
        running._lock.close()
        finding = daemon.leftovers(own_endpoint)
    assert finding is not None
    assert finding.severity == "warning"


def test_a_daemon_that_serves() -> None:
    with FakeServer() as server, Client(server.endpoint) as client:
        found = daemon.serving(client)
    assert [(f.check, f.severity) for f in found] == [("daemon", "ok"), ("versions", "ok")]


def status(state: str, error: str = "") -> Status:
    engine = EngineStatus(pid=2, device="cuda:0", state="backoff", error=error)
    return Status(
        version="1",
        pid=1,
        endpoint="",
        state=state,
        engines=(engine,),
        queue=QueueStatus(),  # type: ignore[arg-type]
    )


def test_the_state_tells_why_it_is_not_ready() -> None:
    finding = daemon.state(status("degraded", "CUDA error: an illegal memory access"))
    assert finding.severity == "warning"
    assert "illegal memory access" in finding.found
    assert daemon.state(status("ready")).severity == "ok"


@pytest.mark.parametrize(
    ("version", "spoken", "severity"),
    [(__version__, (1,), "ok"), ("99.0", (1, 2), "info"), ("99.0", (2,), "error")],
)
def test_versions(version: str, spoken: tuple[int, ...], severity: str) -> None:
    hello = Hello(
        version=version, versions=spoken, state="ready", limits=Limits(), default_deadline_ms=1, models=()
    )
    finding = daemon.versions(hello)
    assert finding.severity == severity
    assert version in finding.found
    assert msgspec.json.decode(msgspec.json.encode(finding))["check"] == "versions"
