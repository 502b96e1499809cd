"""The layer in front of Flask answers as Flask does, steps aside for hooks, and can be mounted in an app of one's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blinker import NamedSignal
from fake_heads import classifier, reranker
from flask import Blueprint, Flask, Response, abort, got_request_exception, request
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.errors import InvalidRequest, RemoteError
from gpu_server.testing import FakeServer, embedding_model
from web import GPUServer, create_app
from web.fast import SIGNALS
from web.settings import Settings

HOT = {
    "/embed": {"inputs": ["a", "b"]},
    "/v1/embeddings": {"input": "a"},
    "/embeddings": {"input": "a", "encoding_format": "base64"},
    "/rerank": {"query": "q", "texts": ["a", "b"]},
    "/predict": {"inputs": "a"},
}
SETTINGS = Settings(timeout_s=5, max_body_bytes=1 << 12, api_keys="k")


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(embedding_model(), reranker(), classifier()) as running:
        yield running


def flask_served(client: Client) -> FlaskClient:
    """The same app with a hook, so that Flask dispatches every request."""
    app = create_app(client, SETTINGS)
    app.before_request(lambda: None)
    return app.test_client()


def dispatched(app: Flask) -> list[str]:
    """The paths that Flask dispatches from now on; nothing registered, so that the layer does not notice."""
    paths: list[str] = []
    real = app.full_dispatch_request

    def spy() -> Response:
        paths.append(request.path)
        return real()

    app.full_dispatch_request = spy  # type: ignore[method-assign]
    return paths


BODIES: list[bytes] = [
    b"", b"{", b"[]", b"{}", b'{"inputs":""}', b'{"input":[]}', b'{"inputs":"a","model":"no"}', b'{"input":[1,"a"]}',
    b'{"inputs":"' + b"a" * 5000 + b'"}', b'{"inputs":"\xff"}', b'{"inputs":NaN}', b'{"query":"q","texts":[]}',
    b'{"query":1,"texts":["a"]}', b"[" * 4000,
]  # fmt: skip


@pytest.mark.parametrize("path", HOT)
def test_it_answers_as_flask_does(client: Client, path: str) -> None:
    app = create_app(client, SETTINGS)
    paths = dispatched(app)
    fast, plain = app.test_client(), flask_served(client)
    for body in [json.dumps(HOT[path]).encode(), *BODIES]:
        for kind in ("application/json", "text/plain"):
            for key in ("k", "wrong"):
                headers = {"authorization": f"Bearer {key}", "x-request-id": "r"}
                answers = [
                    http.post(path, data=body, content_type=kind, headers=headers) for http in (fast, plain)
                ]
                ours, theirs = ((a.status_code, a.data, facts(a)) for a in answers)
                assert ours == theirs
    assert paths == []


def facts(answer: Any) -> dict[str, str]:
    """The headers less the times."""
    return {name.lower(): value for name, value in answer.headers if not name.lower().endswith("-time")}


@pytest.mark.parametrize("hook", ["before_request", "after_request", "teardown_request", "errorhandler"])
def test_it_steps_aside_for_hooks(client: Client, hook: str) -> None:
    app = create_app(client, Settings())
    paths = dispatched(app)
    seen: list[Any] = []
    if hook == "errorhandler":
        app.register_error_handler(RemoteError, lambda error: (f"mine: {error.message}", 418))
    else:
        getattr(app, hook)(lambda *given: seen.append(given) or (given[0] if given else None))
    answer = app.test_client().post("/embed", json={"inputs": "a", "model": "no"})
    assert paths == ["/embed"]
    assert (
        (answer.status_code, answer.text[:5]) == (418, "mine:") if hook == "errorhandler" else len(seen) == 1
    )


def refuse() -> None:
    abort(403)


HOOKS: dict[str, Callable[[Flask], object]] = {
    "before_request": lambda app: app.before_request(refuse),
    "after_request": lambda app: app.after_request(lambda answer: Response(status=403)),
    "errorhandler": lambda app: app.register_error_handler(418, lambda error: ("mine", 403)),
    "teardown_appcontext": lambda app: app.teardown_appcontext(lambda error: None),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_an_app_of_ones_own_run_whenever_they_were_registered(
    client: Client, hook: str, first: bool
) -> None:
    app = Flask("own")
    if first:
        HOOKS[hook](app)
    GPUServer(app, client=client, settings=Settings())
    if not first:
        HOOKS[hook](app)
    paths = dispatched(app)
    http = app.test_client()
    answers = {http.post(path, json=body).status_code == 403 for path, body in HOT.items()}
    assert answers == {hook in ("before_request", "after_request")}
    assert paths == list(HOT)


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: str(signal.name))
def test_who_listens_to_flask_s_signals_hears_of_hot_routes_too(client: Client, signal: NamedSignal) -> None:
    app = Flask("own")
    GPUServer(app, client=client, settings=Settings())
    heard: list[Any] = []
    with signal.connected_to(lambda sender, **about: heard.append(sender), app):
        paths = dispatched(app)
        app.test_client().post("/embed", json={"inputs": "a"})
    assert paths == ["/embed"]
    assert heard or signal is got_request_exception


def test_hooks_of_a_blueprint_are_of_its_own_routes(client: Client) -> None:
    app = Flask("own")
    theirs = Blueprint("theirs", __name__)
    theirs.before_request(refuse)
    theirs.add_url_rule("/mine", "mine", lambda: "mine")
    app.register_blueprint(theirs)
    GPUServer(app, client=client, settings=Settings())
    paths = dispatched(app)
    http = app.test_client()
    assert http.post("/embed", json={"inputs": "a"}).status_code == 200
    assert (http.get("/mine").status_code, paths) == (403, ["/mine"])


SETUP: dict[str, Callable[[Flask], object]] = {
    "before_request": lambda app: app.before_request(refuse),
    "register_blueprint": lambda app: app.register_blueprint(Blueprint("late", __name__)),
    "register_error_handler": lambda app: app.register_error_handler(418, lambda error: ("mine", 403)),
    "add_url_rule": lambda app: app.add_url_rule("/late", "late", lambda: "late"),
    "init_app": lambda app: GPUServer(app, settings=Settings(), url_prefix="/again"),
}


@pytest.mark.parametrize("path", ["/embed", "/livez"])
@pytest.mark.parametrize("setup", SETUP)
def test_setup_after_the_first_request_is_an_error_as_in_flask(client: Client, setup: str, path: str) -> None:
    app = create_app(client, Settings())
    http = app.test_client()
    first = http.get(path) if path == "/livez" else http.post(path, json={"inputs": "a"})
    assert first.status_code == 200
    with pytest.raises(AssertionError, match="first"):
        SETUP[setup](app)


@pytest.mark.parametrize("rule", ["/embed", "/<any(embed):what>"])
@pytest.mark.parametrize("first", [True, False])
def test_a_route_of_the_app_is_served_where_flask_would(client: Client, first: bool, rule: str) -> None:
    def add(app: Flask) -> None:
        app.add_url_rule(rule, "mine", lambda **values: "mine", methods=["POST"])

    app = Flask("own")
    if first:
        add(app)
    GPUServer(app, client=client, settings=Settings())
    if not first:
        add(app)
    paths = dispatched(app)
    http = app.test_client()
    own = first and rule == "/embed"
    assert (http.post("/embed", json={"inputs": "a"}).text == "mine") is own
    assert paths == ["/embed"] * own
    assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert paths == ["/embed"] * own


def test_a_route_of_the_app_with_another_method_changes_nothing(client: Client) -> None:
    app = Flask("own")
    app.add_url_rule("/embed", "mine", lambda: "mine")
    GPUServer(app, client=client, settings=Settings())
    paths = dispatched(app)
    http = app.test_client()
    assert http.post("/embed", json={"inputs": "a"}).status_code == 200
    assert (http.get("/embed").text, paths) == ("mine", ["/embed"])


def test_a_route_of_one_host_is_not_shadowed(client: Client) -> None:
    app = Flask("own", host_matching=True, static_folder=None)
    GPUServer(app, client=client, settings=Settings())
    app.add_url_rule("/embed", "mine", lambda: "mine", methods=["POST"], host="localhost")
    assert app.test_client().post("/embed", json={"inputs": "a"}).text == "mine"


def test_a_hook_may_read_the_body_first(client: Client) -> None:
    app = create_app(client, Settings())
    bodies: list[Any] = []
    app.before_request(lambda: bodies.append(request.get_json()))
    assert app.test_client().post("/embed", json={"inputs": "a"}).status_code == 200
    assert bodies == [{"inputs": "a"}]


def test_a_defect_is_500_without_its_details(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise KeyError("secret")

    app = create_app(client, Settings())
    monkeypatch.setattr(client, "requests", broken)
    with caplog.at_level(logging.ERROR):
        answer = app.test_client().post("/embed", json={"inputs": "a"}, headers={"x-request-id": "r-17"})
    assert answer.status_code == 500
    assert "r-17" in answer.get_json()["error"]
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    assert "r-17" in caplog.text


def own_app(client: Client, **options: Any) -> Flask:
    app = Flask("own")
    GPUServer(app, client=client, **options)

    @app.get("/mine")
    def mine() -> str:
        return "mine"

    @app.get("/refused")
    def refused() -> str:
        raise InvalidRequest("not theirs to answer")

    return app


def test_the_routes_mount_in_an_app_of_ones_own(client: Client) -> None:
    app = own_app(client, url_prefix="/ml", settings=SETTINGS)
    paths = dispatched(app)
    http = app.test_client()
    headers = {"authorization": "Bearer k"}
    assert http.post("/ml/embed", json={"inputs": "a"}, headers=headers).status_code == 200
    assert paths == []
    assert http.post("/ml/embed", json={"inputs": "a"}).status_code == 401
    assert http.post("/ml/tokenize", json={"inputs": "a"}).status_code == 401
    assert (
        http.post("/ml/tokenize", json={"inputs": 1}, headers=headers).get_json()["error_type"]
        == "Validation"
    )
    assert http.get("/ml/livez").get_json() == {"status": "ok"}
    assert http.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 404


def test_what_else_is_in_that_app_is_left_alone(client: Client) -> None:
    http = own_app(client, url_prefix="/ml", settings=SETTINGS).test_client()
    mine = http.get("/mine")
    assert (mine.text, "x-request-id" in mine.headers) == ("mine", False)
    assert http.get("/nope").content_type.startswith("text/html")
    assert http.get("/refused").status_code == 500


def test_mounted_later(client: Client) -> None:
    app = Flask("own")
    GPUServer(client=client, settings=Settings()).init_app(app)
    assert app.test_client().post("/embed", json={"inputs": "a"}).status_code == 200
