"""`gunicorn web:app` for real: every worker class, with and without --preload, against a fake daemon."""

from __future__ import annotations

import json
import os
import signal
import time
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from running_daemon import until
from running_gunicorn import CLASSES, RunningGunicorn, UnixConnection

from gpu_server.testing import FakeServer, fake_vector

WAIT_S = 30


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def echo_many(web: RunningGunicorn, thread: int) -> list[tuple[int, Any, Any]]:
    """Requests over one kept connection, each with inputs of its own; status, answer and what it should be."""
    connection = UnixConnection(web.path)
    seen = []
    for i in range(20):
        inputs = {"nonce": [thread * 1000 + i, -i], "s": [f"{thread}/{i}", "x" * i]}
        status, body = web.ask("POST", "/v1/models/echo/infer", {"inputs": inputs}, connection)
        seen.append((status, body.get("outputs"), inputs))
    connection.close()
    return seen


def assert_no_framework_is_mapped(pid: int) -> None:
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "zmq" in maps
    assert not [word for word in ("libtorch", "libcuda", "libcudart", "nvidia") if word in maps]


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("worker_class", CLASSES)
def test_answers_reach_their_callers(daemon: FakeServer, worker_class: str, preload: list[str]) -> None:
    with (
        RunningGunicorn(daemon.endpoint, *CLASSES[worker_class], *preload) as web,
        ThreadPoolExecutor(8) as pool,
    ):
        web.ask_every_worker("POST", "/embed", {"inputs": "hi"})
        for seen in pool.map(echo_many, [web] * 8, range(8)):
            assert [(s, o) for s, o, _ in seen] == [(200, expected) for *_, expected in seen]
        status, rows = web.ask("POST", "/embed", {"inputs": "hi", "normalize": False})
        assert status == 200
        np.testing.assert_allclose(rows, [fake_vector([256, 104, 105, 257])], rtol=1e-6)
        assert web.ask("GET", "/readyz")[0] == 200
        for pid in web.workers():
            assert_no_framework_is_mapped(pid)
        web.process.terminate()
        assert web.process.wait(WAIT_S) == 0
    log = "".join(web.log)
    assert "Traceback" not in log, log
    assert ("worker class sync" in log) == (worker_class == "sync")


@pytest.mark.parametrize("worker_class", CLASSES)
def test_without_a_daemon_it_says_so_at_once_and_recovers(tmp_path: Path, worker_class: str) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    with RunningGunicorn(endpoint, *CLASSES[worker_class]) as web:
        for path, body in (("/readyz", None), ("/embed", {"inputs": "a"}), ("/health", None)):
            web.ask("GET", "/livez")
            started = time.monotonic()
            status, answer = web.ask("POST" if body else "GET", path, body)
            assert status == 503
            assert endpoint in answer["error"]
            assert "gpu-server start" in answer["error"]
            assert time.monotonic() - started < 2
        assert "gpu_server_up 0" in web.ask("GET", "/metrics")[1]
        with FakeServer(endpoint=endpoint):
            give_up = time.monotonic() + 10
            while web.ask("POST", "/embed", {"inputs": "a"})[0] != 200:
                assert time.monotonic() < give_up
            assert "gpu_server_up 1" in web.ask("GET", "/metrics")[1]
        assert web.ask("GET", "/readyz")[0] == 503


def test_a_killed_worker_is_replaced_and_nothing_else_notices(daemon: FakeServer) -> None:
    with RunningGunicorn(daemon.endpoint) as web:
        assert web.ask("POST", "/embed", {"inputs": "a"})[0] == 200
        victim = web.workers()[0]
        os.kill(victim, signal.SIGKILL)
        web.wait_for("Booting worker")
        assert victim not in web.workers()
        with ThreadPoolExecutor(4) as pool:
            for seen in pool.map(echo_many, [web] * 4, range(4)):
                assert all(s == 200 and o == expected for s, o, expected in seen)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_openai_client(daemon: FakeServer, web: RunningGunicorn, encoding: str | None) -> None:
    options: dict[str, Any] = {"encoding_format": encoding} if encoding else {}
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="-", max_retries=0) as client:
        answer = client.embeddings.create(
            model="embedding", input=["a", "b"], dimensions=4, user="u", **options
        )
        assert (answer.model, answer.usage.prompt_tokens) == ("fake/embedding", 6)
        for i, text in enumerate("ab"):
            expected = fake_vector([256, ord(text), 257])[:4]
            got: Any = answer.data[i].embedding
            if isinstance(got, str):
                got = np.frombuffer(b64decode(got), "<f4")
            np.testing.assert_allclose(got, expected / np.linalg.norm(expected), rtol=1e-5)
        assert [m.id for m in client.models.list()] == ["fake/embedding", "echo"]
        with pytest.raises(openai.NotFoundError, match="fake/embedding, echo"):
            client.embeddings.create(model="nope", input="a")


def test_a_chunked_body_over_the_limit_is_413(web: RunningGunicorn) -> None:
    connection = UnixConnection(web.path)
    connection.request(
        "POST", "/embed", iter([b'{"inputs":"', b"a" * 5000, b'"}']), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    assert answer.status == 413
    assert "4096 bytes" in json.loads(answer.read())["error"]
    connection.close()


def test_the_settings_ship_with_the_package(daemon: FakeServer, web: RunningGunicorn, tmp_path: Path) -> None:
    with RunningGunicorn(daemon.endpoint, "-c", "python:web.serving", cwd=tmp_path) as elsewhere:
        assert elsewhere.ask("GET", "/readyz")[0] == 200
    for log in (web.log, elsewhere.log):
        assert any("Using worker: gthread" in line for line in log)


@pytest.fixture(scope="module")
def web(daemon: FakeServer) -> Iterator[RunningGunicorn]:
    with RunningGunicorn(daemon.endpoint, GPU_SERVER_WEB_MAX_BODY_BYTES="4096") as running:
        yield running


def test_importing_torch_in_a_request_is_an_error_there(daemon: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "lazy_app.py").write_text(
        "from web import create_app\napp = create_app()\n"
        "@app.get('/torch')\ndef use():\n    import torch\n    return torch.__version__\n"
    )
    with RunningGunicorn(daemon.endpoint, "--pythonpath", str(tmp_path), app="lazy_app:app") as web:
        status, body = web.ask("GET", "/torch")
        assert status == 500
        assert "request id" in body["error"]
        assert web.ask("GET", "/livez")[0] == 200
    assert "GPU_SERVER_WEB_TORCH_GUARD=off" in "".join(web.log)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_an_app_that_imports_a_framework_does_not_boot(
    daemon: FakeServer, tmp_path: Path, preload: list[str]
) -> None:
    (tmp_path / "cupy.py").touch()
    # The other worker fails too, and is not ended before, while Gunicorn stops because of the first.
    (tmp_path / "eager_app.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "import cupy\nfrom web import create_app\napp = create_app()\n"
    )
    options = ["--pythonpath", str(tmp_path), *preload]
    web = RunningGunicorn(daemon.endpoint, *options, workers=2, app="eager_app:app")
    try:
        assert web.process.wait(WAIT_S) == 3
    finally:
        web.__exit__(None, None, None)
    assert "cupy" in "".join(web.log)
    assert "HaltServer" not in "".join(web.log)
    assert "GPU_SERVER_WEB_TORCH_GUARD=off" in "".join(web.log)


def affinities(pid: int) -> set[frozenset[int]]:
    """The cores of each of a process's threads, those that end meanwhile left out."""
    seen = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            seen.add(frozenset(os.sched_getaffinity(int(task.name))))
    return seen


def test_a_worker_and_its_threads_stay_on_one_core_where_asked(daemon: FakeServer) -> None:
    with RunningGunicorn(daemon.endpoint, GPU_SERVER_WEB_CPU_AFFINITY="auto") as web:
        assert web.ask("POST", "/embed", {"inputs": "hi"})[0] == 200
        until(lambda: len(web.workers()) == 2, "two workers")
        allowed = os.sched_getaffinity(0)
        assert os.sched_getaffinity(web.process.pid) == allowed
        cores = [os.sched_getaffinity(pid) for pid in web.workers()]
        assert all(len(core) == 1 for core in cores)
        assert len(set().union(*cores)) == min(2, len(allowed))
        for pid, core in zip(web.workers(), cores, strict=True):
            assert affinities(pid) == {frozenset(core)}


def test_connections_end_up_with_all_workers_alike(daemon: FakeServer) -> None:
    count, workers = 24, 3
    with RunningGunicorn(daemon.endpoint, workers=workers) as web:
        connections = [UnixConnection(web.path) for _ in range(count)]
        give_up = time.monotonic() + WAIT_S
        latest: list[int] = []
        while time.monotonic() < give_up:
            statuses = [web.ask("GET", "/livez", to=connection)[0] for connection in connections]
            assert statuses == [200] * count
            latest = sorted(web.served_by()[-count:].count(pid) for pid in web.workers())
            if len(latest) == workers and latest[-1] - count / workers <= 1:
                break
        for connection in connections:
            connection.close()
        assert latest[-1] <= count / workers + 1, latest
