"""Which model a request means: by field, by path, by what the route is for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeModel, FakeServer, echo_model, embedding_model
from gpu_server.wire import Limits, Tensors
from web import create_app
from web.settings import SIMILARITY, Settings


@pytest.fixture
def two() -> Iterator[FlaskClient]:
    models = (echo_model(), embedding_model("team/small"), embedding_model("team/large", dimensions=16))
    with FakeServer(*models, limits=Limits(max_items=10)) as server, Client(server.endpoint) as client:
        yield create_app(client, Settings()).test_client()


def dimensions(answer: Any) -> int:
    assert answer.status_code == 200, answer.get_json()
    return len(answer.get_json()[0])


def test_by_field_and_by_path(two: FlaskClient) -> None:
    assert dimensions(two.post("/embed", json={"inputs": "a"})) == 8
    assert dimensions(two.post("/embed", json={"inputs": "a", "model": "team/large"})) == 16
    for path in ("/models/team/large/embed", "/models/large/embed", "/models/large"):
        assert dimensions(two.post(path, json={"inputs": "a", "model": "small"})) == 16
    body = two.post("/v1/models/large/embeddings", json={"input": "a"}).get_json()
    assert (body["model"], len(body["data"][0]["embedding"])) == ("team/large", 16)
    assert two.get("/models/large/info").get_json()["model_id"] == "team/large"
    assert two.get("/info").get_json()["model_id"] == "team/small"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a", "model": "nope"}),
        ("/models/nope/embed", {"inputs": "a"}),
        ("/models/nope", {"inputs": "a"}),
        ("/models/nope/tokenize", {"inputs": "a"}),
        ("/models/nope/info", None),
        ("/v2/models/nope", None),
    ],
)
def test_an_unknown_model_is_404_with_the_list(two: FlaskClient, path: str, body: Any) -> None:
    answer = two.get(path) if body is None else two.post(path, json=body)
    assert answer.status_code == 404
    assert "echo, team/small, team/large" in answer.get_json()["error"]


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_the_alias_does_what_the_model_is_for(two: FlaskClient, path: str) -> None:
    assert dimensions(two.post(path, json={"inputs": "a"})) == 8


def test_the_alias_of_a_custom_model_is_infer(client: Client) -> None:
    with FakeServer(echo_model()) as server, Client(server.endpoint) as only:
        answer = create_app(only, Settings()).test_client().post("/", json={"inputs": {"x": [1]}})
    assert answer.get_json()["outputs"] == {"x": [1]}


def test_task_makes_the_alias_compare(client: Client) -> None:
    http = create_app(client, Settings(task=SIMILARITY)).test_client()
    asked = {"inputs": {"source_sentence": "a", "sentences": ["a"]}}
    np.testing.assert_allclose(http.post("/", json=asked).get_json(), [1], rtol=1e-6)
    assert Settings.from_env({"TASK": SIMILARITY}).task == SIMILARITY
    assert Settings.from_env({"TASK": "text-classification"}).task == ""


def test_vertex_answers_each_instance(two: FlaskClient) -> None:
    asked = {"instances": [{"inputs": "a"}, {"inputs": ["a", "b"], "dimensions": 3}]}
    first, second = two.post("/vertex", json=asked).get_json()["predictions"]
    assert (np.shape(first), np.shape(second)) == ((1, 8), (2, 3))


def test_vertex_answers_no_more_than_an_answer_may_hold(client: Client) -> None:
    one = {"inputs": ["a"] * 8}
    http = create_app(client, Settings(max_answer_bytes=2048)).test_client()
    assert http.post("/vertex", json={"instances": [one]}).status_code == 200
    answer = http.post("/vertex", json={"instances": [one] * 24})
    assert answer.status_code == 413
    assert "max_answer_bytes = 2048: send fewer instances" in answer.get_json()["error"]


def test_vertex_s_instances_are_on_their_way_together_and_answered_in_order() -> None:
    model = embedding_model()
    others = threading.Event()

    def last_first(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(next(iter(inputs.values())).rows()[0]) > 3:
            assert others.wait(10)
        else:
            others.set()
        return model.handler(inputs, params)

    server = FakeServer(FakeModel(model.info, last_first, model.tokenizer))
    with server, Client(server.endpoint, timeout_s=15) as client:
        http = create_app(client, Settings()).test_client()
        instances = [{"inputs": "first"}, {"inputs": "b"}]
        predictions = http.post("/vertex", json={"instances": instances}).get_json()["predictions"]
        assert predictions == [http.post("/embed", json=instance).get_json() for instance in instances]


@pytest.mark.parametrize(
    ("second", "status", "words"),
    [
        ({"inputs": 1}, 422, "instances[1]: inputs"),
        ({"inputs": ""}, 400, "instances[1].inputs"),
        ({"inputs": [1, "a"]}, 422, "instances[1]: inputs[0]"),
    ],
)
def test_vertex_names_the_instance_that_does_not_fit(
    two: FlaskClient, second: Any, status: int, words: str
) -> None:
    answer = two.post("/vertex", json={"instances": [{"inputs": "a"}, second]})
    assert answer.status_code == status
    assert words in answer.get_json()["error"]


def test_more_inputs_than_the_daemon_takes_at_once_are_sent_in_parts(two: FlaskClient) -> None:
    texts = [f"text {i}" for i in range(34)]
    whole = two.post("/embed", json={"inputs": texts}).get_json()
    assert whole == [two.post("/embed", json={"inputs": text}).get_json()[0] for text in texts]


def test_limits_of_a_request_are_those_of_the_settings(client: Client) -> None:
    http = create_app(client, Settings(max_client_batch_size=32, max_client_tokens=10)).test_client()
    many = http.post("/embed", json={"inputs": ["a"] * 33})
    assert many.status_code == 422
    assert many.get_json() == {
        "error": "inputs: batch size 33 > maximum allowed batch size 32 (max_client_batch_size)",
        "error_type": "Validation",
    }
    long = http.post("/embed", json={"inputs": "a" * 9})
    assert (long.status_code, long.get_json()["error"]) == (
        422,
        "inputs: 11 tokens exceed max_client_tokens = 10",
    )
    assert http.post("/embed", json={"inputs": "a" * 8}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models/embedding/infer", "/v2/models/embedding/infer", "/embed"])
def test_an_answer_is_no_larger_than_the_setting(client: Client, path: str) -> None:
    http = create_app(client, Settings(max_answer_bytes=64)).test_client()

    def ask(items: int) -> tuple[int, str]:
        ids = [[256, 97, 257]] * items
        tensor = {"name": "input_ids", "datatype": "INT32", "shape": [items, 3], "data": ids}
        bodies: dict[str, Any] = {"v1": {"inputs": {"input_ids": ids}}, "v2": {"inputs": [tensor]}}
        answer = http.post(path, json=bodies.get(path[1:3], {"inputs": ids}))
        return answer.status_code, answer.get_data(as_text=True)

    assert ask(2)[0] == 200
    status, said = ask(3)
    assert status == 413
    assert "96 bytes of outputs exceed max_answer_bytes = 64" in said
