"""Raw tensors, MessagePack, forms and images to a model of the user's own."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeModel, FakeServer, echo_model
from gpu_server.wire import Tensors
from gpu_server.wire.documents import InputInfo, ModelInfo
from web import create_app
from web.settings import Settings

RAW = "application/octet-stream"
X = np.arange(6, dtype="<f4").reshape(2, 3)


def model(name: str, *inputs: InputInfo) -> FakeModel:
    """Gives its inputs back, and the parameter k for each item."""

    def handler(given: Tensors, params: Any) -> dict[str, Any]:
        return {**given, "k": [params.get("k", 0)] * next(iter(given.values())).items}

    return FakeModel(ModelInfo(name=name, inputs=inputs), handler)


@pytest.fixture
def http() -> Iterator[FlaskClient]:
    models = (
        model("linear", InputInfo("x", "f32", (3,))),
        model("image", InputInfo("picture", "bytes")),
        model(
            "both", InputInfo("picture", "bytes"), InputInfo("caption", "utf8"), InputInfo("x", "f32", (3,))
        ),
        model("rows", InputInfo("ids", "i32", (-1,))),
        echo_model(),
    )
    with FakeServer(*models) as server, Client(server.endpoint) as client:
        yield create_app(client, Settings()).test_client()


def post(http: FlaskClient, name: str, data: Any, kind: str, **headers: str) -> Any:
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    return http.post(f"/v1/models/{name}/infer", data=data, content_type=kind, headers=sent)


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.get_json()
    found: dict[str, Any] = answer.get_json()["outputs"]
    return found


def test_a_raw_tensor_of_the_declared_shape(http: FlaskClient) -> None:
    assert outputs(post(http, "linear", X.tobytes(), RAW))["x"] == X.tolist()


def test_a_raw_tensor_that_says_what_it_is(http: FlaskClient) -> None:
    data = np.array([[1, 2]], "<i2").tobytes()
    answer = post(http, "echo", data, RAW, x_tensor_name="a", x_tensor_dtype="i16", x_tensor_shape="1, 2")
    assert outputs(answer) == {"a": [[1, 2]]}


def test_an_image_is_one_item_of_bytes(http: FlaskClient) -> None:
    assert outputs(post(http, "image", b"\xff\xd8", "image/jpeg"))["picture"] == ["/9g="]
    assert outputs(post(http, "image", b"\xff\xd8", RAW))["picture"] == ["/9g="]


def test_a_form_has_one_part_per_item(http: FlaskClient) -> None:
    form = {
        "picture": [(BytesIO(b"\x00"), "a.png"), (BytesIO(b"\x01"), "b.png")],
        "caption": ["one", "zwei ü"],
        "x": ["[0, 1, 2]", (BytesIO(X[1].tobytes()), "x.bin")],
        "parameters": '{"k": 5}',
    }
    got = outputs(post(http, "both", form, "multipart/form-data"))
    assert (got["picture"], got["caption"], got["k"]) == (["AA==", "AQ=="], ["one", "zwei ü"], [5, 5])
    assert sorted(got["x"]) == X.tolist()
    rows = {"ids": [(BytesIO(np.array([1, 2], "<i4").tobytes()), "a"), (BytesIO(b"\3\0\0\0"), "b")]}
    assert outputs(post(http, "rows", rows, "multipart/form-data"))["ids"] == [[1, 2], [3]]


def test_messagepack_both_ways(http: FlaskClient) -> None:
    body = {
        "inputs": {
            "x": {"dtype": "f32", "shape": [2, 3], "data": X.tobytes()},
            "s": {"dtype": "utf8", "shape": [2], "data": ["a", "é"]},
        },
        "parameters": {},
        "priority": 2,
    }
    answer = post(http, "echo", msgspec.msgpack.encode(body), "application/msgpack")
    assert answer.content_type == "application/msgpack"
    got = msgspec.msgpack.decode(answer.data)["outputs"]
    assert got["x"] == {"dtype": "f32", "shape": [2, 3], "data": X.tobytes()}
    assert got["s"]["data"] == ["a", "é"]
    plain = post(http, "echo", msgspec.msgpack.encode(body), "application/msgpack", accept="application/json")
    assert outputs(plain)["x"] == X.tolist()


def packed(**change: Any) -> bytes:
    return msgspec.msgpack.encode(
        {"inputs": {"x": {"dtype": "f32", "shape": [2, 3], "data": X.tobytes()} | change}}
    )


@pytest.mark.parametrize(
    ("name", "data", "kind", "headers", "status", "words"),
    [
        ("linear", X.tobytes()[:-1], RAW, {}, 422, "x: 23 bytes are no whole number of f32 items [3]"),
        ("linear", X.tobytes(), RAW, {"x_tensor_shape": "2,4"}, 422, "x: shape [2, 4] of f32 needs 32 bytes"),
        ("linear", X.tobytes(), RAW, {"x_tensor_shape": "two"}, 422, "x-tensor-shape"),
        ("linear", X.tobytes(), RAW, {"x_tensor_dtype": "float"}, 422, "x-tensor-dtype: 'float' is none of"),
        ("linear", X.tobytes(), RAW, {"x_tensor_name": "y"}, 422, "takes the inputs: x; got: y"),
        ("both", b"\0", "image/png", {}, 422, "takes the inputs: picture, caption, x; got: none"),
        ("echo", b"\0", RAW, {}, 422, "x-tensor-name"),
        ("linear", b"", RAW, {}, 422, "'x' has no items"),
        ("linear", b"\xc1", "application/msgpack", {}, 422, "malformed MessagePack"),
        ("linear", packed(shape=[2, -3]), "application/msgpack", {}, 422, "shape"),
        ("linear", packed(data="text"), "application/msgpack", {}, 422, "data"),
        ("linear", packed(data=[1]), "application/msgpack", {}, 422, "inputs.x.data: expected the bytes"),
        ("linear", packed(dtype="utf8", data=["a"]), "application/msgpack", {}, 422, "inputs.x: utf8 data"),
        ("linear", packed(dtype="utf8", data=[b"\xff"], shape=[1]), "application/msgpack", {}, 422, "UTF-8"),
        ("linear", packed(dtype="complex"), "application/msgpack", {}, 422, "dtype"),
        ("both", {"caption": (BytesIO(b"\xff"), "c")}, "multipart/form-data", {}, 422, "caption[0]: not valid UTF-8"),
        ("both", {"picture": "p", "caption": "c"}, "multipart/form-data", {}, 422, "takes the inputs"),
        ("linear", {"x": "[1, 2"}, "multipart/form-data", {}, 400, "malformed JSON"),
        ("linear", {"x": "[1, 2, 3]", "parameters": "[]"}, "multipart/form-data", {}, 422, "object"),
        ("linear", b"no form", "multipart/form-data", {}, 422, "malformed form"),
        ("linear", b"x=1", "application/x-www-form-urlencoded", {}, 415, "multipart/form-data"),
    ],
)  # fmt: skip
def test_a_bad_body_names_the_input(
    http: FlaskClient, name: str, data: Any, kind: str, headers: dict[str, str], status: int, words: str
) -> None:
    answer = post(http, name, data, kind, **headers)
    assert answer.status_code == status, answer.get_json()
    assert words in answer.get_json()["error"]["message"]


@pytest.mark.parametrize("entry", [b"\x80", b"\x90"])
def test_packed_lists_of_anything_but_strings_are_refused_before_they_are_made(
    http: FlaskClient, entry: bytes
) -> None:
    many = b"\x91\xdd" + (1 << 17).to_bytes(4, "big") + entry * (1 << 17)
    for dtype in ("f32", "utf8", "bytes"):
        tensor = {"dtype": dtype, "shape": [1], "data": msgspec.Raw(many)}
        body = msgspec.msgpack.encode({"inputs": {"x": tensor}})
        tracemalloc.start()
        answer = post(http, "linear", body, "application/msgpack")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert answer.status_code == 422, answer.get_json()
        assert "inputs.x.data: expected" in answer.get_json()["error"]["message"]
        assert peak < 2_000_000


def test_a_form_field_of_more_lists_than_items_can_be_is_refused(http: FlaskClient) -> None:
    many = "[" + ",".join(["[]"] * 70_000) + "]"
    answer = post(http, "linear", {"x": many}, "multipart/form-data")
    assert answer.status_code == 422, answer.get_json()
    assert answer.get_json()["error"]["message"].startswith("x[0]: more than 65536 lists")
