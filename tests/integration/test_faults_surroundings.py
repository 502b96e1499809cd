"""Faults around the daemon: half-open connections, no descriptors left, a full disk for logs, a queue that is full."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_daemon import MODELS, RunningDaemon, StartDaemon, clean_environment, until
from running_gunicorn import RunningGunicorn

from gpu_server.client import Client
from gpu_server.errors import Overloaded, RemoteError

pytestmark = pytest.mark.slow

HALF_OPEN = 300
HANDSHAKE_S = 3.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL"


def answer(client: Client, value: int) -> bool:
    return client.infer(x=[value])["y"].tolist() == [2 * value + 1]  # type: ignore[union-attr]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def half_open(running: RunningDaemon, count: int) -> Iterator[None]:
    """Connections that begin the handshake and never end it."""
    opened = []
    try:
        for _ in range(count):
            raw = socket.socket(socket.AF_UNIX)
            opened.append(raw)
            raw.settimeout(5)
            try:
                raw.connect(running.endpoint.removeprefix("ipc://"))
                raw.sendall(GREETING)
            except OSError:
                break
        yield
    finally:
        for raw in opened:
            raw.close()


def test_half_open_connections_are_closed_by_the_daemon(daemon: StartDaemon) -> None:
    running = daemon("served_models:Numbers").wait_ready()
    assert answer(running.client, 1)
    before = open_files(running.pid)
    with half_open(running, HALF_OPEN):
        until(lambda: open_files(running.pid) >= before + HALF_OPEN, "they are open", 2)
        assert all(answer(running.client, value) for value in range(50))
        until(lambda: open_files(running.pid) <= before + 1, "all are closed", HANDSHAKE_S + 3)


def test_more_connections_than_a_shell_allows_end_nobody(daemon: StartDaemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = daemon("served_models:Numbers")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    running.wait_ready()
    with half_open(running, min(500, soft - 100)):
        until(lambda: open_files(running.pid) > 300, "they are open", 5)
        assert all(answer(running.client, value) for value in range(50))
        with Client(running.endpoint, timeout_s=10) as late:
            assert answer(late, 5)


def _tries(client: Client) -> bool:
    try:
        return answer(client, 5)
    except RemoteError:
        return False


def test_a_full_disk_for_logs_fails_no_request(own_endpoint: str) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_server", "start", "served_models:Numbers", "--log-level", "debug"],
            cwd=MODELS, env=clean_environment(GPU_SERVER_ENDPOINT=own_endpoint), stderr=full, stdout=full,
        )  # fmt: skip
    try:
        with Client(own_endpoint, timeout_s=10) as client:
            until(lambda: _tries(client), "it serves")
            assert all(answer(client, value) for value in range(50))
            engine = client.status().engines[0].pid
            os.kill(engine, 9)
            until(lambda: _tries(client), "it recovers", 30)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(daemon: StartDaemon, tmp_path: Path) -> None:
    running = daemon("served_models:Numbers", "--max-queue-items", "100").wait_ready()
    gate = tmp_path / "gate"

    def held(value: int) -> list[int]:
        result: list[int] = running.client.infer(x=[value] * 10, params={"gate": str(gate)})["y"].tolist()  # type: ignore[union-attr]
        return result

    with ThreadPoolExecutor(40) as pool:
        futures = [pool.submit(held, value) for value in range(10)]
        until(lambda: running.client.status().queue.requests == 10, "all wait", 10)
        took = []
        for _ in range(20):
            begun = time.perf_counter()
            with pytest.raises(Overloaded) as refused:
                for _ in range(20):
                    pool.submit(held, 1)
                    running.client.infer(x=list(range(100)))
            took.append(time.perf_counter() - begun)
            assert refused.value.retry_after_s > 0
        gate.touch()
        assert [future.result(20) for future in futures] == [[2 * value + 1] * 10 for value in range(10)]
    assert sorted(took)[10] < 0.1


def test_a_silent_daemon_is_a_504_before_gunicorn_would_kill_the_worker(silent: str) -> None:
    with RunningGunicorn(silent, "--timeout", "5", GPU_SERVER_WEB_TIMEOUT_S="1") as web:
        workers = web.workers()
        begun = time.monotonic()
        status, body = web.ask("POST", "/embed", {"inputs": "a"})
        assert (status, "error" in body) == (504, True)
        assert time.monotonic() - begun < 4
        assert web.workers() == workers
