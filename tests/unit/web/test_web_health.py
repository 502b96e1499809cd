from __future__ import annotations

import time
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from running_daemon import until

from gpu_server.client import Client
from gpu_server.testing import FakeServer
from web import backend, create_app
from web.settings import Settings


def test_alive_and_ready(http: FlaskClient) -> None:
    assert http.get("/livez").get_json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.get_json()["state"]) == (200, "ready")


def test_not_ready_while_loading(
    http: FlaskClient, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "state", "loading")
    answer = http.get("/readyz")
    assert (answer.status_code, answer.get_json()["state"]) == (503, "loading")
    assert {"phase", "progress"} <= answer.get_json().keys()
    assert int(answer.headers["Retry-After"]) >= 1
    assert http.get("/livez").status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_without_a_daemon_it_says_where_and_how_to_start_one(
    down: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(backend, "ASK_TIMEOUT_S", 60.0)
    started = time.monotonic()
    answer = down.get(path)
    assert time.monotonic() - started < 10
    assert answer.status_code == 503
    assert "ipc:///nonexistent/gpu-server.sock" in answer.get_json()["error"]
    assert "gpu-server start" in answer.get_json()["error"]
    assert down.get("/livez").status_code == 200


def test_a_request_without_a_daemon_is_503(down: FlaskClient) -> None:
    answer = down.post("/embed", json={"inputs": "a"})
    assert (answer.status_code, answer.get_json()["error_type"]) == (503, "Unhealthy")
    assert "gpu-server start" in answer.get_json()["error"]


def test_metrics_tell_whether_the_daemon_answers(http: FlaskClient, down: FlaskClient) -> None:
    up = http.get("/metrics")
    assert up.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert {"gpu_server_fake 1", "gpu_server_up 1"} <= set(up.text.splitlines())
    without = down.get("/metrics")
    assert without.status_code == 200
    assert "gpu_server_up 0" in without.text.splitlines()


def test_readiness_follows_a_daemon_that_goes_and_comes_back(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    with Client(endpoint) as client:
        http = create_app(client, Settings()).test_client()
        with FakeServer(endpoint=endpoint):
            assert http.get("/readyz").status_code == 200
        assert http.get("/readyz").status_code == 503
        with FakeServer(endpoint=endpoint):
            until(lambda: http.get("/readyz").status_code == 200, "ready again", 10)
