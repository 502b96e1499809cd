"""What a real daemon tells the service manager, from its first word to its last, heard on a socket of the test's."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from running_daemon import StartDaemon

from gpu_server.client import Client

pytestmark = pytest.mark.slow


LIMIT_S = 60.0


def listen(manager: socket.socket, until: str) -> list[str]:
    """The lines that come, up to one that begins as asked for."""
    heard: list[str] = []
    give_up = time.monotonic() + LIMIT_S
    while not any(line.startswith(until) for line in heard):
        assert time.monotonic() < give_up, f"no {until!r} among {heard}"
        heard += manager.recv(4096).decode().split("\n")
    return heard


def test_a_life_as_the_manager_hears_it(
    daemon: StartDaemon, socket_folder: Path, own_endpoint: str, tmp_path: Path
) -> None:
    gates = {"LOAD_GATE": str(tmp_path / "load"), "WARM_GATE": str(tmp_path / "load")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(f"{socket_folder}/notify")
        running = daemon("served_models:Gated", NOTIFY_SOCKET=f"{socket_folder}/notify", **gates)
        loading = listen(manager, "STATUS=loading: loading Gated (")
        assert "READY=1" not in loading and "EXTEND_TIMEOUT_USEC=30000000" in loading
        (tmp_path / "load").touch()
        assert "STATUS=ready: 1 model, queue 0, 0 req/s" in listen(manager, "READY=1")
        with Client(own_endpoint, timeout_s=10) as client:
            assert client.infer(x=[1])["y"].tolist() == [3]
        running.terminate()
        stopping = listen(manager, "STOPPING=1")
        assert "READY=1" not in stopping
        assert running.wait_end() == 0
