"""API keys, cross-origin calls, and where /metrics is."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from flask import Flask, request
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.errors import ConfigError
from web import create_app
from web.auth import Keys
from web.settings import Settings

HASHED = sha256(b"third").hexdigest()


@pytest.fixture
def app(client: Client) -> Flask:
    made = create_app(
        client, Settings(api_keys=f"first, bob:second,carol:sha256:{HASHED},eva:schl\u00fcssel")
    )
    made.add_url_rule("/who", "who", lambda: request.remote_user or "")
    return made


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("Bearer first", "key-1"),
        ("bearer second", "bob"),
        ("second", "bob"),
        ("Bearer third", "carol"),
        ("Bearer schl\u00c3\u00bcssel", "eva"),
        ("Bearer fourth", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (f"Bearer {HASHED}", None),
        ("Basic Zmlyc3Q=", None),
        ("Bearer \xe9", None),
    ],
)
def test_a_key_opens_every_route_and_has_a_name(app: Flask, sent: str, name: str | None) -> None:
    http = app.test_client()
    headers = {"Authorization": sent}
    who = http.get("/who", headers=headers)
    assert (who.status_code, who.text if name else None) == (200 if name else 401, name)
    for path in ("/embed", "/tokenize", "/v2/models/echo/infer"):
        answer = http.post(path, json={"inputs": "a"}, headers=headers)
        assert (answer.status_code == 401) is (name is None)


def test_a_refusal_is_json_in_the_dialect_of_the_route(app: Flask) -> None:
    http = app.test_client()
    native = http.post("/embed", json={"inputs": "a"})
    assert native.get_json()["error_type"] == "Unauthorized"
    assert native.headers["WWW-Authenticate"].lower().startswith("bearer")
    assert http.post("/v1/embeddings", json={}).get_json()["error"]["type"] == "authentication_error"
    assert isinstance(http.post("/v2/models/m/infer", json={}).get_json()["error"], str)
    assert [http.get(p).status_code for p in ("/nope", "/metrics", "/info", "/")] == [401] * 4


def test_live_and_ready_need_no_key(app: Flask) -> None:
    http = app.test_client()
    paths = ("/health", "/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")
    assert [http.get(p).status_code for p in paths] == [200] * 6


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nann:one\nsha256:{HASHED}\n")
    keys = Keys.from_settings(Settings(api_keys_file=str(file)))
    assert [keys.name_of(k) for k in ("one", "third", "two")] == ["ann", "key-2", None]


@pytest.mark.parametrize(
    "entry",
    [
        "a b", "x:", ":secret", "n:sha256:12", "a:b:c:d", "n:one,n:two", f"sha256:{'g' * 64}", f"SHA256:{HASHED}",
        f"sha256:sha256:{HASHED}", f"sha256:{HASHED}:secret",
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_without_showing_it(entry: str) -> None:
    with pytest.raises(ConfigError, match="GPU_SERVER_WEB_API_KEYS") as caught:
        Keys.from_settings(Settings(api_keys=entry))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [",", " ", " , "])
def test_a_setting_without_keys_does_not_leave_the_door_open(value: str) -> None:
    with pytest.raises(ConfigError, match="GPU_SERVER_WEB_API_KEYS: no keys"):
        Keys.from_settings(Settings.from_env({"GPU_SERVER_WEB_API_KEYS": value}))


@pytest.mark.parametrize("content", [None, "# none\n"])
def test_a_file_without_keys_does_not_leave_the_door_open(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigError, match="keys"):
        Keys.from_settings(Settings(api_keys_file=str(tmp_path / "keys")))


def test_pages_of_other_origins_are_not_let_in_by_default(http: FlaskClient) -> None:
    answer = http.get("/livez", headers={"Origin": "https://a.example"})
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]


def test_pages_of_named_origins_are(client: Client) -> None:
    settings = Settings(cors_allow_origins="https://a.example, https://b.example", api_keys="k")
    http = create_app(client, settings).test_client()
    origin = {"Origin": "https://b.example"}
    asked = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-request-id",
    }
    preflight = http.options("/embed", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization,x-request-id"
    refused = http.post("/embed", json={"inputs": "a"}, headers=origin)
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://b.example"
    other = http.get("/livez", headers={"Origin": "https://c.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    assert other.headers["Vary"] == "Origin"


def test_any_origin(client: Client) -> None:
    http = create_app(client, Settings(cors_allow_origins="*")).test_client()
    assert http.get("/livez", headers={"Origin": "x"}).headers["Access-Control-Allow-Origin"] == "*"


class Listener:
    """The socket that a request came in by, as Gunicorn hands it over."""

    def __init__(self, port: int) -> None:
        self.port = port

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


@pytest.mark.parametrize(
    ("bound", "port", "status"),
    [("", 8000, 200), ("127.0.0.1:9000", 9000, 200), ("127.0.0.1:9000", 8000, 404), ("off", 8000, 404)],
)
def test_metrics_are_where_they_are_bound(client: Client, bound: str, port: int, status: int) -> None:
    http = create_app(client, Settings(metrics_bind=bound)).test_client()
    environ = {"gunicorn.socket": Listener(port)}
    answer = http.get("/metrics", environ_overrides=environ, headers={"Host": "x:9000"})
    assert answer.status_code == status


def test_at_the_limit_of_requests_in_flight_the_next_is_429(client: Client) -> None:
    app = create_app(client, Settings(max_concurrent_requests=1))
    http = app.test_client()
    with app.extensions["gpu_server"].gate.pass_one():
        answer = http.post("/embed", json={"inputs": "a"})
        assert http.get("/health").status_code == 200
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert answer.get_json() == {"error": "Model is overloaded", "error_type": "Overloaded"}
    assert http.post("/embed", json={"inputs": "a"}).status_code == 200
