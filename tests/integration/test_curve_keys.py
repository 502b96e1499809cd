"""A daemon on tcp that wants keys: its clients are served, sync, async and over HTTP, and nobody else disturbs them."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from free_port import free_port
from running_daemon import PYTHON, RunningDaemon, StartDaemon, clean_environment, until
from running_gunicorn import RunningGunicorn

from gpu_server import AsyncClient, Client, curve
from gpu_server.config import ClientConfig
from gpu_server.errors import EndpointForbidden

pytestmark = pytest.mark.slow
QUICK_S = 5.0


@pytest.fixture
def endpoint() -> str:
    """A port of loopback that nobody has."""
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClientConfig:
    """Keys of a client that is listed; clients of this test have them by default."""
    for name in ("daemon", "web", "stranger"):
        curve.make(tmp_path / name)
    (tmp_path / "clients").write_bytes((tmp_path / "web.pub").read_bytes())
    key, server = str(tmp_path / "web.key"), str(tmp_path / "daemon.pub")
    monkeypatch.setenv("GPU_SERVER_CURVE_CLIENT_KEY_FILE", key)
    monkeypatch.setenv("GPU_SERVER_CURVE_SERVER_KEY_FILE", server)
    return ClientConfig(key, server)


@pytest.fixture
def running(daemon: StartDaemon, mine: ClientConfig, endpoint: str, tmp_path: Path) -> RunningDaemon:
    options = (
        "--curve-key-file",
        str(tmp_path / "daemon.key"),
        "--curve-clients-file",
        str(tmp_path / "clients"),
    )
    return daemon("served_models:Numbers", *options, endpoint=endpoint).wait_ready()


def ask(client: Client, value: int = 3) -> list[int]:
    answer: list[int] = client.infer(x=[value])["y"].tolist()  # type: ignore[union-attr]
    return answer


def refusal(endpoint: str, settings: ClientConfig) -> str:
    """What a client hears that is let in by nobody; it hears it soon."""
    started = time.monotonic()
    with (
        Client(endpoint, timeout_s=60, settings=settings) as client,
        pytest.raises(EndpointForbidden) as error,
    ):
        ask(client)
    assert time.monotonic() - started < QUICK_S
    return str(error.value)


def test_a_listed_client_is_served_sync_async_and_over_http(
    running: RunningDaemon, mine: ClientConfig
) -> None:
    with Client(running.endpoint, settings=mine) as client:
        assert ask(client) == [7]
        assert "gpu_server_clients 2" in client.metrics()

    async def ask_async() -> list[int]:
        async with AsyncClient(running.endpoint, settings=mine) as other:
            answer: list[int] = (await other.infer(x=[4]))["y"].tolist()  # type: ignore[union-attr]
            return answer

    assert asyncio.run(ask_async()) == [9]
    gunicorn = RunningGunicorn(
        running.endpoint,
        GPU_SERVER_CURVE_CLIENT_KEY_FILE=mine.curve_client_key_file,
        GPU_SERVER_CURVE_SERVER_KEY_FILE=mine.curve_server_key_file,
    )
    with gunicorn as web:
        status, body = web.ask("POST", "/v1/models/Numbers/infer", {"inputs": {"x": [5]}})
    assert (status, body["outputs"]["y"]) == (200, [11])


def test_nobody_else_is_and_those_who_are_notice_nothing(
    running: RunningDaemon, mine: ClientConfig, tmp_path: Path
) -> None:
    stranger = replace(mine, curve_client_key_file=str(tmp_path / "stranger.key"))
    wrong_server = replace(mine, curve_server_key_file=str(tmp_path / "stranger.pub"))
    stop = threading.Event()

    def work() -> int:
        count = 0
        while not stop.is_set() or not count:
            assert ask(running.client, count) == [2 * count + 1]
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            assert "does not accept this client's key" in refusal(running.endpoint, stranger)
            assert "GPU_SERVER_CURVE_SERVER_KEY_FILE" in refusal(running.endpoint, wrong_server)
            assert "wants a key" in refusal(running.endpoint, ClientConfig())
        finally:
            stop.set()
        assert working.result(30) > 0
    status = running.client.status()
    assert status.counters["dropped_key_refused"] == 1
    assert "client refused: its key is not listed" in running.log


def test_a_client_that_is_added_is_served_without_a_restart(
    running: RunningDaemon, mine: ClientConfig, tmp_path: Path
) -> None:
    stranger = replace(mine, curve_client_key_file=str(tmp_path / "stranger.key"))
    with Client(running.endpoint, settings=stranger) as client:
        with pytest.raises(EndpointForbidden, match="does not accept"):
            ask(client)
        with (tmp_path / "clients").open("a") as file:
            file.write((tmp_path / "stranger.pub").read_text())
        assert ask(client) == [7]


def test_verbs_of_the_owner_go_without_keys_and_a_stop_ends_everything(
    running: RunningDaemon, mine: ClientConfig
) -> None:
    """The control socket is ipc, whatever the variables say; and a stop waits for no handshake."""
    env = clean_environment(
        GPU_SERVER_ENDPOINT=running.endpoint,
        GPU_SERVER_CURVE_CLIENT_KEY_FILE=mine.curve_client_key_file,
        GPU_SERVER_CURVE_SERVER_KEY_FILE=mine.curve_server_key_file,
    )
    for verb, said in ("reload", "Numbers  version"), ("status", "ready"):
        done = subprocess.run(
            [PYTHON, "-m", "gpu_server", verb], env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, said in done.stdout) == (0, True), done.stderr
    assert ask(running.client) == [7]
    running.terminate()
    assert running.wait_end(20) == 0


def test_a_restart_of_the_daemon_is_survived(
    daemon: StartDaemon, running: RunningDaemon, endpoint: str, tmp_path: Path
) -> None:
    assert ask(running.client) == [7]
    running.terminate()
    assert running.wait_end(20) == 0
    options = (
        "--curve-key-file",
        str(tmp_path / "daemon.key"),
        "--curve-clients-file",
        str(tmp_path / "clients"),
    )
    daemon("served_models:Numbers", *options, endpoint=endpoint).wait_ready()
    until(lambda: running.status() is not None, "the client's next connection", 10)
    assert ask(running.client) == [7]
