from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeModel, FakeServer
from gpu_server.wire import Tensors
from gpu_server.wire.documents import InputInfo, ModelInfo
from gpu_server.wire.header import ItemError
from web import create_app
from web.settings import Settings

PATH = "/v1/models/echo/infer"


def test_inputs_come_back_as_outputs(http: FlaskClient) -> None:
    inputs = {"x": [[1.5, 2], [3, 4]], "ids": [[1], [2, 3]], "s": ["a", "é"], "flag": [True, False]}
    body = http.post(PATH, json={"inputs": inputs}).get_json()
    assert (body["model"], body["version"]) == ("echo", "1")
    assert body["outputs"] == inputs
    assert body["item_errors"] == []
    assert body["timing"]["batch_items"] == 2
    assert {"queue_us", "compute_us", "total_us", "batch_tokens"} <= body["timing"].keys()


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs":{},"parameters":{"a":["b"]},"z":NaN}',
        '{"inputs":{},"parameters":{"a":["b"]},"parameters":3}',
        '{"inputs":{"x":3},"inputs":[1]}',
    ],
)
def test_a_mistake_before_another_is_told_too(http: FlaskClient, body: str) -> None:
    answer = http.post(PATH, data=body, content_type="application/json")
    assert answer.status_code == 422, answer.get_json()


def test_parameters_and_declared_types_reach_the_model() -> None:
    seen: dict[str, Any] = {}

    def handler(inputs: Tensors, params: Any) -> dict[str, Any]:
        seen.update(params)
        return {"doubled": inputs["x"].to_numpy() * 2, "blob": inputs["raw"].raw_strings()}

    info = ModelInfo(name="team/m", inputs=(InputInfo("x", "f16", (2,)), InputInfo("raw", "bytes")))
    with FakeServer(FakeModel(info, handler)) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings()).test_client()
        blob = b64encode(b"\xff\x00").decode()
        params = {"k": 3, "name": "n", "on": True, "t": 0.5}
        asked = {
            "inputs": {"x": [[1, 2]], "raw": [blob]},
            "parameters": params,
            "priority": 2,
            "timeout_ms": 5000,
        }
        body = http.post("/v1/models/team/m/infer", json=asked).get_json()
        bad = http.post("/v1/models/m/infer", json={"inputs": {"x": [[1, 2]], "raw": ["?"]}})
        missing = http.post("/v1/models/m/infer", json={"inputs": {"x": [[1, 2]]}})
    assert body["outputs"] == {"doubled": [[2, 4]], "blob": [blob]}
    assert seen == params
    assert (bad.status_code, bad.get_json()["error"]["param"]) == (422, "inputs.raw[0]")
    assert missing.status_code == 422
    assert "x, raw" in missing.get_json()["error"]["message"]


def test_numbers_that_are_not_finite_are_null() -> None:
    model = FakeModel(ModelInfo(name="m"), lambda inputs, params: {"y": np.array([np.nan, 1], np.float32)})
    with FakeServer(model) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings()).test_client()
        body = http.post("/v1/models/m/infer", json={"inputs": {"x": [1, 2]}}).get_json()
    assert body["outputs"] == {"y": [None, 1.0]}


def test_items_that_fail_alone_are_reported(
    http: FlaskClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.request

    def with_item_error(*args: Any, **options: Any) -> Any:
        reply = real(*args, **options)
        reply.header.item_errors = (ItemError(1, "model_failed", "boom"),)
        return reply

    monkeypatch.setattr(client, "request", with_item_error)
    answer = http.post(PATH, json={"inputs": {"x": [1, 2]}})
    assert answer.status_code == 200
    assert answer.get_json()["item_errors"] == [{"item": 1, "code": "model_failed", "message": "boom"}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "inputs: required, and missing; the API's page /docs"),
        ({"inputs": {}}, "input"),
        ({"inputs": {"x": []}}, "'x'"),
        ({"inputs": {"x": 1}}, "inputs.x: expected `array`, got `int`; the API's page /docs shows the body"),
        ({"inputs": {"x": [1], "pixels": "x"}}, "inputs.pixels: expected `array`, got `str`"),
        ({"inputs": {"x": [1], "y`z[...]": "x"}}, "inputs.y`z[...]: expected"),
        ({"inputs": {"x": [None]}}, "'x'"),
        ({"inputs": {"x": [{"a": 1}]}}, "'x'"),
        ({"inputs": {"x": [[1, 2], [3, "a"]]}}, "'x'"),
        ({"inputs": {"x": [[1, [2]], [3, 4]]}}, "'x'"),
        ({"inputs": {"x": ["a", 1]}}, "'x'"),
        ({"inputs": {"x": [10**30]}}, "'x'"),
        ({"inputs": {"x": [1] * 4097}}, "4096"),
        ({"inputs": {"x": [1]}, "priority": 7}, "priority"),
        ({"inputs": {"x": [1]}, "timeout_ms": 0}, "timeout_ms"),
        ({"inputs": {"x": [1]}, "parameters": {"a": 1, "k": [1]}}, "parameters.k"),
        ({"inputs": {"x": [1]}, "parameters": {"k": 10**30}}, "parameters"),
        ({"inputs": {"x": [1]}, "parameters": {str(i): i for i in range(17)}}, "parameters"),
        ({"inputs": {"x": [1]}, "parameters": {"k": "v" * 2000}}, "1024 bytes"),
        ({"inputs": {"x": [1], "y": [1, 2]}}, "items"),
        ({"inputs": {"x" * 65: [1]}}, ""),
    ],
)
def test_a_bad_request_is_422_in_openai_s_shape(http: FlaskClient, body: Any, words: str) -> None:
    answer = http.post(PATH, json=body)
    assert answer.status_code == 422, answer.get_json()
    assert words in answer.get_json()["error"]["message"]


def test_an_unknown_model_is_404_with_the_list(http: FlaskClient) -> None:
    answer = http.post("/v1/models/nope/infer", json={"inputs": {"x": [1]}})
    assert answer.status_code == 404
    assert "fake/embedding, echo" in answer.get_json()["error"]["message"]


@pytest.mark.parametrize("entry", [b"[]", b"{}"])
def test_more_lists_than_items_can_be_are_refused_before_they_are_made(
    http: FlaskClient, entry: bytes
) -> None:
    data = b'{"inputs": {"x": [[' + b",".join([entry] * 70_000) + b"]]}}"
    big = create_app(http.application.extensions["gpu_server"].client, Settings()).test_client()
    answer = big.post("/v1/models/echo/infer", data=data, content_type="application/json")
    assert answer.status_code == 422, answer.get_json()
    assert answer.get_json()["error"]["message"].startswith("inputs: more than 65536 lists")
