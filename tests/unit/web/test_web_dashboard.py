from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeServer
from web import create_app
from web.settings import Settings


def test_the_page_is_whole_and_lets_nothing_else_in(http: FlaskClient) -> None:
    answer = http.get("/dashboard")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert re.findall(r"(?:src|href)=(\S+?)>", answer.text) == ['"data:,"']
    assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_the_numbers(http: FlaskClient) -> None:
    answer = http.get("/dashboard/data?since=7")
    body = answer.get_json()
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert (body["state"], body["points"], body["gpus"]) == ("ready", [], [])
    assert body.keys() >= {"phase", "progress", "uptime_s", "version", "models", "devices", "memory"}
    assert not body.keys() & {"pid", "endpoint"}


@pytest.mark.parametrize("since", ["-1", "x", "1e9", "9" * 16, ""])
def test_a_point_that_is_no_number_is_refused(http: FlaskClient, since: str) -> None:
    wrong = since != ""
    assert http.get(f"/dashboard/data?since={since}").status_code == (422 if wrong else 200)


def test_the_numbers_need_a_key_where_one_is_set(client: Client) -> None:
    http = create_app(client, Settings(timeout_s=5, api_keys="me:secret")).test_client()
    assert http.get("/dashboard").status_code == 200
    assert http.get("/dashboard/data").status_code == 401
    known = http.get("/dashboard/data", headers={"Authorization": "Bearer secret"})
    assert known.status_code == 200


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/data"])
def test_it_is_served_where_metrics_are(client: Client, path: str) -> None:
    http = create_app(client, Settings(timeout_s=5, metrics_bind="off")).test_client()
    answer = http.get(path)
    assert answer.status_code == 404
    assert "GPU_SERVER_WEB_METRICS_BIND" in answer.get_json()["error"]


def test_without_a_daemon_the_numbers_say_so(down: FlaskClient) -> None:
    assert down.get("/dashboard").status_code == 200
    assert down.get("/dashboard/data").status_code == 503


def test_a_loading_daemon_has_numbers_too(
    http: FlaskClient, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "state", "loading")
    assert http.get("/dashboard/data").get_json()["state"] == "loading"
