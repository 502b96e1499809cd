"""The Open Inference Protocol; tritonclient[http] itself is run against it in the clients' suite."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeModel, FakeServer, echo_model, embedding_model
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.documents import InputInfo, ModelInfo
from web import create_app, kserve
from web.errors import BadField
from web.schemas import KServeInput
from web.settings import Settings

PATH = "/v2/models/linear/infer"
X = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4.5]}


def double(inputs: Tensors, params: Any) -> dict[str, Any]:
    x = inputs["x"].to_numpy()
    jagged = Tensor.from_rows([[1], [2, 3]][: len(x)], "i64")
    return {"y": x * 2, "rows": jagged, "blob": [b"\xff"] * len(x), "k": [params.get("k", 0)] * len(x)}


@pytest.fixture
def http() -> Iterator[FlaskClient]:
    info = ModelInfo(
        name="team/linear", version="3", inputs=(InputInfo("x", "f32", (2,)),),
        output_tensors=(InputInfo("y", "f32", (2,)), InputInfo("rows", "i64", (-1,)), InputInfo("blob", "bytes")),
    )  # fmt: skip
    models = (FakeModel(info, double), echo_model(), embedding_model())
    with FakeServer(*models) as server, Client(server.endpoint) as client:
        yield create_app(client, Settings()).test_client()


def ask(http: FlaskClient, path: str = PATH, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.get_json()
    found: dict[str, Any] = answer.get_json()
    return found


def outputs(body: dict[str, Any]) -> dict[str, Any]:
    return {o["name"]: (o["datatype"], o["shape"], o["data"]) for o in body["outputs"]}


def test_server_and_model_facts(http: FlaskClient) -> None:
    assert http.get("/v2").get_json()["extensions"] == ["binary_tensor_data"]
    assert http.get("/v2/health/live").status_code == 200
    assert http.get("/v2/health/ready").status_code == 200
    for path in (
        "/v2/models/team/linear",
        "/v2/models/linear/versions/3",
        "/v2/models/team%2Flinear/versions/3",
    ):
        facts = http.get(path).get_json()
        assert (facts["name"], facts["versions"]) == ("team/linear", ["3"])
        assert facts["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        assert facts["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "rows", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "blob", "datatype": "BYTES", "shape": [-1]},
        ]
    text = http.get("/v2/models/embedding").get_json()["inputs"]
    assert {"name": "input_ids", "datatype": "INT32", "shape": [-1, -1]} in text
    assert {"name": "text", "datatype": "BYTES", "shape": [-1]} in text
    for path, status in (
        ("linear", 200),
        ("linear/versions/3", 200),
        ("linear/versions/4", 404),
        ("no", 404),
    ):
        assert http.get(f"/v2/models/{path}/ready").status_code == status


def test_not_ready_while_loading() -> None:
    with FakeServer() as server, Client(server.endpoint) as client:
        http = create_app(client, Settings()).test_client()
        server.state = "loading"
        assert http.get("/v2/health/ready").status_code == 503
        assert http.get("/v2/health/live").status_code == 200


def test_json_in_and_out(http: FlaskClient) -> None:
    body = ask(http, inputs=[X], id="q", parameters={"k": 7})
    assert (body["model_name"], body["model_version"], body["id"]) == ("team/linear", "3", "q")
    assert outputs(body) == {
        "y": ("FP32", [2, 2], [2, 4, 6, 9]),
        "rows": ("INT64", [2, 2], [1, 0, 2, 3]),
        "rows_lengths": ("INT32", [2], [1, 2]),
        "blob": ("BYTES", [2], ["/w==", "/w=="]),
        "k": ("INT64", [2], [7, 7]),
    }


def test_nested_data_and_chosen_outputs(http: FlaskClient) -> None:
    nested = X | {"data": [[1, 2], [3, 4.5]]}
    body = ask(http, f"{PATH[:-6]}/versions/3/infer", inputs=[nested], outputs=[{"name": "y"}])
    assert outputs(body) == {"y": ("FP32", [2, 2], [2, 4, 6, 9])}


def binary(http: FlaskClient, head: dict[str, Any], data: bytes, path: str = PATH, **headers: str) -> Any:
    coded = json.dumps(head).encode()
    sent = {"Inference-Header-Content-Length": str(len(coded))} | headers
    return http.post(path, data=coded + data, headers=sent, content_type="application/octet-stream")


def test_binary_tensors_in_and_out(http: FlaskClient) -> None:
    x = np.array([[1, 2], [3, 4.5]], np.float32)
    given = {k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": 16}}
    asked = {
        "inputs": [given],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "k"}],
    }
    answer = binary(http, asked, x.tobytes())
    length = int(answer.headers["Inference-Header-Content-Length"])
    head = json.loads(answer.data[:length])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 16}
    np.testing.assert_array_equal(np.frombuffer(answer.data[length:], "<f4").reshape(2, 2), x * 2)
    assert head["outputs"][1]["data"] == [0, 0]


def test_binary_strings(http: FlaskClient) -> None:
    data = b"".join(struct.pack("<I", len(s)) + s for s in ("é".encode(), b""))
    given = {"name": "s", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    asked = {"inputs": [given], "parameters": {"binary_data_output": True}}
    answer = binary(http, asked, data, "/v2/models/echo/infer")
    assert answer.data[int(answer.headers["Inference-Header-Content-Length"]) :] == data
    plain = {"name": "s", "shape": [1], "datatype": "BYTES", "data": ["é"]}
    assert outputs(ask(http, "/v2/models/echo/infer", inputs=[plain]))["s"][2] == ["é"]


def test_rows_of_one_length_are_taken_where_any_length_is(http: FlaskClient) -> None:
    ids = {"name": "input_ids", "shape": [2, 3], "datatype": "INT32", "data": [1, 2, 3, 4, 5, 6]}
    body = ask(http, "/v2/models/embedding/infer", inputs=[ids])
    assert outputs(body)["embedding"][:2] == ("FP32", [2, 8])


def test_a_compressed_body(http: FlaskClient) -> None:
    packed = gzip.compress(json.dumps({"inputs": [X]}).encode())
    headers = {"Content-Encoding": "gzip"}
    assert http.post(PATH, data=packed, headers=headers).status_code == 200
    for data, coding, status in (
        (packed[:-9], "gzip", 400),
        (b"x", "gzip", 400),
        (packed, "br", 415),
        (gzip.compress(bytes(9 << 20)), "gzip", 413),
    ):
        answer = http.post(PATH, data=data, headers={"Content-Encoding": coding})
        assert (answer.status_code, type(answer.get_json()["error"])) == (status, str)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [X | {"datatype": "FLOAT"}]}, "inputs[0].datatype"),
        ({"inputs": [X | {"shape": [3, 2]}]}, "inputs[0] (x): shape [3, 2]"),
        ({"inputs": [X | {"shape": [-1, 2]}]}, "shape"),
        ({"inputs": [X | {"data": [1, "a", 3, 4]}]}, "inputs[0] (x)"),
        ({"inputs": [X | {"data": [[1, 2], [3]]}]}, "inputs[0] (x)"),
        ({"inputs": [X | {"data": [1, [2], 3, 4]}]}, "inputs[0] (x)"),
        ({"inputs": [X | {"data": [1, None, 3, 4]}]}, "inputs[0] (x)"),
        ({"inputs": [X | {"data": [10**40] * 4, "datatype": "INT32"}]}, "inputs[0] (x)"),
        ({"inputs": [X | {"name": "z"}]}, "takes the inputs: x; got: z"),
        ({"inputs": [X, X]}, "inputs[1] (x): is there twice"),
        ({"inputs": [{k: v for k, v in X.items() if k != "data"}]}, "inputs[0] (x): needs data"),
        ({"inputs": [X], "outputs": [{"name": "nope"}]}, "'nope' is none of the outputs: y"),
        ({"inputs": [X | {"datatype": "BYTES"}]}, "inputs[0] (x): BYTES"),
        ({"inputs": [X | {"datatype": "BF16"}]}, "no JSON form"),
        ({"inputs": [X], "parameters": {"k": [1]}}, "parameters"),
    ],
)
def test_a_bad_request_names_the_tensor(http: FlaskClient, change: Any, words: str) -> None:
    answer = http.post(PATH, json={"inputs": [X]} | change)
    assert answer.status_code == 422, answer.get_json()
    assert words in answer.get_json()["error"]


@pytest.mark.parametrize(
    ("size", "data", "header", "words"),
    [
        (17, bytes(16), "", "at most the 16 bytes left"),
        (-1, bytes(16), "", "binary_data_size"),
        (True, bytes(16), "", "binary_data_size"),
        (16, bytes(20), "", "4 bytes after the last tensor"),
        (12, bytes(12), "", "needs 16 bytes, and 12 are there"),
        (16, bytes(16), "9999", "no length within the body"),
        (16, bytes(16), "-1", "no length within the body"),
        (16, bytes(16), "9" * 5000, "no length within the body"),
    ],
)
def test_bad_binary_data(http: FlaskClient, size: Any, data: bytes, header: str, words: str) -> None:
    given = {k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": size}}
    headers = {"Inference-Header-Content-Length": header} if header else {}
    answer = binary(http, {"inputs": [given]}, data, **headers)
    assert answer.status_code == 422, answer.get_json()
    assert words in answer.get_json()["error"]


@pytest.mark.parametrize("size", [1 << 40, 1 << 20])
def test_a_shape_of_many_empty_rows_is_refused_before_it_costs_memory(http: FlaskClient, size: int) -> None:
    ids = {"name": "input_ids", "shape": [size, 0], "datatype": "INT32", "data": []}
    tracemalloc.start()
    answer = http.post("/v2/models/embedding/infer", json={"inputs": [ids]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == 413, answer.get_json()
    assert "max_items" in answer.get_json()["error"]
    assert peak < 3_000_000


def test_rows_are_not_filled_up_to_more_than_an_answer_may_hold() -> None:
    info = ModelInfo(name="ragged", version="1")
    rows = [np.zeros(1, np.float32)] * 255 + [np.zeros(16_384, np.float32)]
    model = FakeModel(info, lambda inputs, params: {"rows": Tensor.from_rows(rows, "f32")})
    given = {"name": "x", "shape": [256], "datatype": "UINT8", "data": [0] * 256}
    asked = {"inputs": [given], "parameters": {"binary_data_output": True}}
    with FakeServer(model) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings(max_answer_bytes=(16 << 20) - 1)).test_client()
        tracemalloc.start()
        answer = http.post("/v2/models/ragged/infer", json=asked)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert answer.status_code == 413
        for words in ("16777216 bytes", "max_answer_bytes = 16777215", "/v1/models/ragged/infer"):
            assert words in answer.get_json()["error"]
        assert peak < 4 << 20
        http = create_app(client, Settings(max_answer_bytes=16 << 20)).test_client()
        assert http.post("/v2/models/ragged/infer", json=asked).status_code == 200


def test_data_is_flattened_no_deeper_than_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    seen: list[Any] = []

    def as_tensor(values: Any, *_: Any) -> Tensor:
        seen.append(values)
        return Tensor.from_numpy(np.zeros((1, 1), np.int32))

    monkeypatch.setattr(kserve, "as_tensor", as_tensor)
    for shape, levels in (([1], 1), ([1, 1, 1], 3)):
        given = KServeInput(name="x", shape=shape, datatype="INT32", data=deep)
        kserve.read_inputs([given], b"", ModelInfo(name="m"))
        depth = 0
        value = seen[-1]
        while isinstance(value, list):
            depth, value = depth + 1, value[0]
        assert depth == 900 - (levels - 1)
    monkeypatch.undo()
    with pytest.raises(BadField):
        kserve.read_inputs([given], b"", ModelInfo(name="m"))


@pytest.mark.parametrize("entry", [b"[]", b"{}"])
def test_more_lists_than_items_can_be_are_refused_before_they_are_made(
    http: FlaskClient, entry: bytes
) -> None:
    head = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ['
    data = head + b",".join([entry] * 100_000) + b"]}]}"
    for body, headers in ((data, {}), (data, {"Inference-Header-Content-Length": str(len(data))})):
        answer = http.post(PATH, data=body, headers=headers, content_type="application/json")
        assert answer.status_code == 422
        assert answer.get_json()["error"].startswith("inputs: more than 65536 lists")
