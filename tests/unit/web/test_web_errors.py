"""Every error is JSON, names what is wrong, and carries the request's id."""

from __future__ import annotations

import json
import logging
import re
from io import BytesIO
from typing import Any

import pytest
from flask import Flask, abort
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_server.client import Client
from gpu_server.testing import FakeServer
from gpu_server.wire import RequestHeader
from gpu_server.wire.header import pack, unpack_request
from web import create_app, get_client
from web.context import traceparent
from web.routes import TABLE
from web.schemas import BODIES
from web.settings import Settings

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def post(
    http: FlaskClient, data: bytes, path: str = "/embed", kind: str = "application/json"
) -> tuple[int, str]:
    answer = http.post(path, data=data, content_type=kind)
    error = answer.get_json()["error"]
    return answer.status_code, error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b"{1:2}", 400, "malformed JSON: object keys must be strings (byte 1)"),
        (b'{"inputs":"a"} x', 400, "malformed"),
        (b'{"inputs":["a","b\\ud800"]}', 400, "inputs[1]: a lone surrogate"),
        (b'{"inputs":"a","x":{"y":[1,"\\udc00 and more"]}}', 400, "x.y[1]: a lone surrogate"),
        (b'{"inputs":"a","x":NaN}', 400, "x: NaN"),
        (b'{"inputs":[-Infinity]}', 400, "inputs[0]: NaN and infinities"),
        (b'{"inputs":"a\xff"}', 400, "UTF-8 at byte 12"),
        (b'{"inputs":"a","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, "nested too deeply"),
        (b'{"inputs":[1e400]}', 422, "inputs[0]"),
        (b'{"inputs":' + b"9" * 5000 + b"}", 422, "inputs"),
        (b'{"inputs":"' + b"a" * (64 << 10) + b'"}', 413, "65536 bytes"),
    ],
)
def test_a_bad_body_is_named(http: FlaskClient, data: bytes, status: int, words: str) -> None:
    got, message = post(http, data)
    assert got == status, message
    assert words in message


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_415(http: FlaskClient, kind: str) -> None:
    status, message = post(http, b'{"inputs":"a"}', kind=kind)
    assert status == 415
    assert "application/json" in message


def test_json_with_a_charset_is_json(http: FlaskClient) -> None:
    answer = http.post("/embed", data=b'{"inputs":"a"}', content_type="application/json; charset=utf-8")
    assert answer.status_code == 200


@pytest.mark.parametrize(("size", "status"), [(64 << 10, 200), ((64 << 10) + 1, 413), (80 << 10, 413)])
def test_a_chunked_body_has_the_same_limit(http: FlaskClient, size: int, status: int) -> None:
    body = BytesIO(b'{"inputs":"a"}'.ljust(size))
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = http.post(
        "/embed", input_stream=body, content_type="application/json", environ_overrides=environ
    )
    assert answer.status_code == status
    assert status == 200 or "65536 bytes" in answer.get_json()["error"]


def test_unknown_routes_and_methods(http: FlaskClient) -> None:
    missing = http.get("/nope")
    assert (missing.status_code, missing.get_json()["error"]) == (404, "no such route: /nope")
    assert "message" in http.get("/v1/nope").get_json()["error"]
    wrong = http.get("/embed")
    assert wrong.status_code == 405
    assert "POST" in wrong.headers["Allow"]
    assert "POST" in wrong.get_json()["error"]


def test_a_defect_is_500_without_its_details(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(client, Settings())

    @app.get("/broken")
    def broken() -> str:
        raise KeyError("secret")

    with caplog.at_level(logging.ERROR):
        answer = app.test_client().get("/broken", headers={"x-request-id": "r-17"})
    assert answer.status_code == 500
    assert "r-17" in answer.get_json()["error"]
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    assert "r-17" in caplog.text


def test_routes_of_your_own_get_the_same_errors_and_client(client: Client) -> None:
    app: Flask = create_app(client, Settings())

    @app.get("/mine")
    def mine() -> list[str]:
        return [m.name for m in get_client().models()]

    @app.get("/teapot")
    def teapot() -> str:
        abort(418, "short and stout")

    http = app.test_client()
    assert http.get("/mine").get_json() == ["fake/embedding", "echo"]
    assert http.get("/teapot").get_json()["error"] == "short and stout"


@pytest.mark.parametrize("given_id", ["abc-123", "x" * 128])
def test_the_caller_s_request_id_comes_back(http: FlaskClient, given_id: str) -> None:
    headers = {"x-request-id": given_id}
    assert http.get("/livez", headers=headers).headers["x-request-id"] == given_id
    assert http.get("/nope", headers=headers).headers["x-request-id"] == given_id


def test_a_trace_id_is_the_request_id_of_who_sends_no_other(http: FlaskClient) -> None:
    answer = http.get("/livez", headers={"traceparent": VALID})
    assert answer.headers["x-request-id"] == VALID[3:35]


@pytest.mark.parametrize("given_id", ["", "x" * 129, "a b", "é"])
def test_another_request_id_is_made(http: FlaskClient, given_id: str) -> None:
    made = {http.get("/livez", headers={"x-request-id": given_id}).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert all(len(i) == 32 for i in made)


@pytest.mark.parametrize(
    "sent",
    [
        VALID,
        "",
        "nonsense",
        VALID.upper(),
        VALID.replace("00-4", "ff-4"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/models/echo/infer", {"inputs": {"x": [1]}}),
    ],
)
def test_the_daemon_gets_a_valid_traceparent_or_one_made_of_the_request_id(
    http: FlaskClient, monkeypatch: pytest.MonkeyPatch, sent: str, path: str, body: Any
) -> None:
    seen: list[str] = []
    real = FakeServer._answer

    def spy(self: FakeServer, header: RequestHeader, inputs: Any) -> Any:
        if header.op == "infer":
            seen.append(header.traceparent)
        return real(self, header, inputs)

    monkeypatch.setattr(FakeServer, "_answer", spy)
    answer = http.post(path, json=body, headers={"traceparent": sent})
    assert answer.status_code == 200
    (passed,) = seen
    if sent == VALID:
        assert passed == VALID
    else:
        assert re.fullmatch(f"00-{answer.headers['x-request-id']}-[0-9a-f]{{16}}-00", passed)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128))
def test_a_caller_s_request_id_always_makes_the_same_valid_trace_id(given_id: str) -> None:
    first, again = (traceparent({"HTTP_X_REQUEST_ID": given_id}) for _ in range(2))
    assert first[:36] == again[:36]
    assert (
        unpack_request(pack(RequestHeader(v=1, id=b"i", op="infer", traceparent=first))).traceparent == first
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=3)
)
KEYS = st.sampled_from(
    sorted(
        {name for body in BODIES for name in body.__struct_fields__}
        | {"name", "shape", "datatype", "data", "text"}
    )
)
PATHS = sorted(
    route.path.replace("<path:model>", model).replace("<version>", "1")
    for route in TABLE
    for model in ("echo", "embedding")
    if route.method == "POST"
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(KEYS, VALUES) | VALUES, path=st.sampled_from(PATHS))
def test_no_json_body_is_a_server_error(http: FlaskClient, body: Any, path: str) -> None:
    answer = http.post(path, data=json.dumps(body), content_type="application/json")
    assert answer.status_code <= 424, answer.get_json()
    assert answer.is_json


@pytest.mark.parametrize("path", sorted({path for path in PATHS if "embedding" not in path}))
@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"a":"\\ud800"}', "application/json", 400),
        (b'{"a":NaN}', "application/json", 400),
        (b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"x=1", "application/x-www-form-urlencoded", 415),
        (b'{"a":"' + b"a" * (64 << 10) + b'"}', "application/json", 413),
    ],
)
def test_every_route_names_a_bad_body(
    http: FlaskClient, path: str, data: bytes, kind: str, status: int
) -> None:
    answer = http.post(path, data=data, content_type=kind)
    kserve = path.startswith("/v2/models") and status == 415
    assert answer.status_code == (400 if kserve else status), answer.get_json()
    assert answer.is_json
