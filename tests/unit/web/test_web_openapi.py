"""The OpenAPI document: complete, valid, and true of what the app answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from gpu_server.client import Client
from gpu_server.testing import (
    FakeModel,
    FakeServer,
    embedding_model,
    scores_model,
    sparse_model,
    token_classifier_model,
)
from gpu_server.wire.documents import InputInfo, ModelInfo
from web import GPUServer, create_app
from web.answers import CohereError, KServeError, OpenAIError, TeiError
from web.openapi import examples
from web.openapi.about import About
from web.openapi.described import DESCRIBED
from web.openapi.document import document, name_of, template
from web.routes import TABLE
from web.routing import Route
from web.settings import Settings

DOCUMENT = document(TABLE, DESCRIBED)
ERRORS = {"tei": TeiError, "openai": OpenAIError, "cohere": CohereError, "kserve": KServeError}
JSON = "application/json"
PLACES = [
    (route, name)
    for route in TABLE
    for name in DESCRIBED[name_of(route.handler)].examples
]  # fmt: skip


def linear() -> FakeModel:
    """As tests/e2e/models/linear.py: what the examples of a model of one's own are for."""
    inputs = (InputInfo("x", "f32", (8,)), InputInfo("nonce", "i64", ()))
    info = ModelInfo(name=examples.CUSTOM, version="1", inputs=inputs)
    return FakeModel(
        info,
        lambda inputs, params: {
            "y": np.ones((inputs["x"].items, 4), np.float32),
            "nonce": inputs["nonce"],
        },
    )


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    classes = ("negative", "positive")
    models = (
        embedding_model(examples.EMBEDDER), scores_model(examples.CLASSIFIER, classes),
        scores_model(examples.RERANKER), sparse_model(examples.SPARSE),
        token_classifier_model(examples.TAGGER), linear(),
    )  # fmt: skip
    with FakeServer(*models) as running:
        yield running


@pytest.fixture(scope="module")
def http(client: Client) -> FlaskClient:
    return create_app(client, Settings(timeout_s=5)).test_client()


@pytest.fixture(scope="module")
def strict(client: Client) -> FlaskClient:
    """The app, taking little."""
    return create_app(client, Settings(max_body_bytes=2000)).test_client()


def test_the_document_is_served_at_both_places(http: FlaskClient) -> None:
    for path in ("/openapi.json", "/api-doc/openapi.json"):
        answer = http.get(path)
        assert (answer.status_code, answer.content_type) == (200, JSON)
        assert answer.get_json() == DOCUMENT


def test_every_route_is_described_and_nothing_else(client: Client) -> None:
    assert {name_of(route.handler) for route in TABLE} == DESCRIBED.keys()
    served = {
        (method.lower(), template(rule.rule))
        for rule in create_app(client, Settings()).url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == served
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            assert operation["summary"].strip(), operation
            assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}


def test_a_json_route_has_an_example_for_its_body_and_its_answer() -> None:
    for route in TABLE:
        about = DESCRIBED[name_of(route.handler)]
        assert bool(about.examples) == bool(about.answers), route.path
        assert all((e.body is None) == (route.method == "GET") for e in about.examples.values()), route.path


def test_it_is_well_formed() -> None:
    identifiers = [o["operationId"] for methods in DOCUMENT["paths"].values() for o in methods.values()]
    assert len(set(identifiers)) == len(identifiers)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in references(DOCUMENT):
        assert resolved(reference)


def resolved(reference: str) -> dict[str, Any]:
    """What a reference within the document is to."""
    start, components, kind, name = reference.split("/")
    assert (start, components) == ("#", "components")
    found: dict[str, Any] = DOCUMENT["components"][kind][name]
    return found


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.mark.parametrize(("route", "name"), PLACES, ids=[f"{r.method} {r.path} {n}" for r, n in PLACES])
def test_an_example_is_answered_as_documented(http: FlaskClient, route: Route, name: str) -> None:
    about = DESCRIBED[name_of(route.handler)]
    example = about.examples[name]
    operation = operation_of(route)
    if example.body is not None:
        check(operation["requestBody"]["content"][JSON]["schema"], example.body)
    answer = http.open(path_of(route, about), method=route.method, json=example.body)
    assert answer.status_code == 200, answer.text
    good = operation["responses"]["200"]
    for value in (answer.get_json(), example.answer):
        check(good["content"][JSON]["schema"], value)
        assert any(is_exactly(kind, value) for kind in about.answers), value
    assert shape(answer.get_json()) == shape(example.answer)
    assert {name.lower() for name, _ in answer.headers} >= good["headers"].keys()


def operation_of(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = DOCUMENT["paths"][template(route.path)][route.method.lower()]
    return operation


def path_of(route: Route, about: About) -> str:
    return template(route.path).format(model=about.model, version="1")


def check(schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)


def is_exactly(kind: Any, value: Any) -> bool:
    """Whether nothing of a value is lost in its type, which ignores what it does not know."""
    try:
        return bool(msgspec.to_builtins(msgspec.convert(value, kind)) == value)
    except msgspec.ValidationError:
        return False


def shape(value: Any) -> Any:
    """What kind of JSON a value is; the first entry stands for a list."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value[:1]]
    return type(value).__name__ if isinstance(value, str | bool) or value is None else "number"


@pytest.mark.parametrize("route", [r for r in TABLE if r.method == "POST"], ids=lambda r: r.path)
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"inputs": {}, "input": {}, "documents": 1, "instances": 1, "ids": {}, "text_1": {}}}, 422),
        ({"data": b"{", "content_type": JSON}, 400),
        ({"data": b"x", "content_type": "text/x"}, 415),
        ({"data": b" " * 3000, "content_type": JSON}, 413),
    ],
)
def test_errors_are_documented(strict: FlaskClient, route: Route, sent: dict[str, Any], status: int) -> None:
    about = DESCRIBED[name_of(route.handler)]
    answer = strict.post(path_of(route, about), **sent)
    kserve_takes_any_type = status == 415 and route.dialect == "kserve"
    assert answer.status_code == (400 if kserve_takes_any_type else status), answer.text
    check_error(route, answer)


@pytest.mark.parametrize("route", [r for r in TABLE if "<" in r.path], ids=lambda r: f"{r.method} {r.path}")
def test_an_unknown_model_is_documented(http: FlaskClient, route: Route) -> None:
    about = DESCRIBED[name_of(route.handler)]
    body = next(iter(about.examples.values())).body
    answer = http.open(template(route.path).format(model="no", version="1"), method=route.method, json=body)
    assert answer.status_code == 404, answer.text
    check_error(route, answer)


@pytest.mark.parametrize("route", TABLE, ids=lambda r: f"{r.method} {r.path}")
def test_where_no_daemon_answers(down: FlaskClient, route: Route) -> None:
    about = DESCRIBED[name_of(route.handler)]
    body = next((example.body for example in about.examples.values()), None)
    answer = down.open(path_of(route, about), method=route.method, json=body)
    responses = operation_of(route)["responses"]
    assert (answer.status_code == 503) is ("503" in responses), answer.text
    if answer.status_code == 503 and about.unready is not None:
        check(responses["503"]["content"][JSON]["schema"], answer.get_json())
        assert is_exactly(about.unready, answer.get_json())
    elif answer.status_code == 503:
        check_error(route, answer)


def check_error(route: Route, answer: Any) -> None:
    """The answer is an error that its operation documents."""
    reference = operation_of(route)["responses"][str(answer.status_code)]["$ref"]
    check(resolved(reference)["content"][JSON]["schema"], answer.get_json())
    assert is_exactly(ERRORS[route.dialect], answer.get_json()), answer.text
    assert "x-request-id" in answer.headers


def test_with_keys_all_but_the_open_routes_say_so(client: Client) -> None:
    http = create_app(client, Settings(api_keys="k")).test_client()
    described = http.get("/openapi.json", headers={"authorization": "Bearer k"}).get_json()
    assert described["security"] == [{"key": []}]
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for route in TABLE:
        operation = described["paths"][template(route.path)][route.method.lower()]
        answer = http.open(path_of(route, DESCRIBED[name_of(route.handler)]), method=route.method)
        assert (answer.status_code == 401) is ("401" in operation["responses"]) is (not route.open)
        assert (operation.get("security") == []) is route.open
    assert DOCUMENT["security"] == []


def test_mounted_under_a_prefix_it_says_where(client: Client) -> None:
    app = Flask("own")
    GPUServer(app, client=client, settings=Settings(), url_prefix="/ml")
    http = app.test_client()
    for path in ("/ml/openapi.json", "/ml/api-doc/openapi.json"):
        assert http.get(path).get_json()["servers"] == [{"url": "/ml"}]
    behind = http.get("/ml/openapi.json", environ_overrides={"SCRIPT_NAME": "/proxy"})
    assert behind.get_json()["servers"] == [{"url": "/proxy/ml"}]


def test_the_page_needs_no_other_server(http: FlaskClient) -> None:
    answer = http.get("/docs")
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.data == files("web.openapi").joinpath("page.html").read_bytes()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w|@import|\bsrc\s*=|<link", answer.text)
    assert "innerHTML" not in answer.text
