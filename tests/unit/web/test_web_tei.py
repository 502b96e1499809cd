"""/embed and the other native routes, as Text-Embeddings-Inference's clients use them."""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from hand_server import connect
from metronome import Metronome
from running_daemon import until

from gpu_server.client import Client
from gpu_server.errors import ModelFailed, OutOfMemory, Overloaded, RemoteError, StaleTokenizer
from gpu_server.testing import FakeModel, FakeServer, echo_model, embedding_model, fake_vector
from gpu_server.wire import Tensors
from gpu_server.wire.header import ItemError
from web import create_app
from web.settings import Settings


def unit(ids: list[int]) -> np.ndarray[Any, Any]:
    vector = fake_vector(ids)
    return vector / np.linalg.norm(vector)


def ids_of(text: str) -> list[int]:
    return [256, *text.encode(), 257]


def matrix(http: FlaskClient, path: str = "/embed", **body: Any) -> np.ndarray[Any, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.get_json()
    return np.array(answer.get_json(), np.float32)


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
def test_one_text_is_a_matrix_on_every_alias(http: FlaskClient, path: str) -> None:
    np.testing.assert_allclose(matrix(http, path, inputs="hello"), [unit(ids_of("hello"))], rtol=1e-6)


def test_rows_come_in_the_order_of_the_inputs(http: FlaskClient) -> None:
    got = matrix(http, inputs=["a", "bc", "é"], parameters={}, unknown=1)
    np.testing.assert_allclose(got, [unit(ids_of(t)) for t in ("a", "bc", "é")], rtol=1e-6)


def test_a_flat_list_of_ids_is_one_text(http: FlaskClient) -> None:
    np.testing.assert_allclose(matrix(http, inputs=ids_of("hi")), [unit(ids_of("hi"))], rtol=1e-6)


def test_ids_keep_their_own_special_tokens_and_mix_with_texts(http: FlaskClient) -> None:
    got = matrix(http, inputs=[[104, 105], "hi", ids_of("hi")])
    expected = [unit([104, 105]), unit(ids_of("hi")), unit(ids_of("hi"))]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_ids_after_a_prompt_become_text(http: FlaskClient) -> None:
    got = matrix(http, inputs=[ids_of("hi"), "hi"], prompt_name="query")
    np.testing.assert_allclose(got, [unit(ids_of("query: hi"))] * 2, rtol=1e-6)


def test_a_prompt_that_is_not_pooled_goes_with_its_length() -> None:
    model = embedding_model("m")
    assert model.info.text is not None
    model.info.text.prompt_lengths = {"query": 7}
    seen: list[object] = []
    answer = model.handler

    def watched(inputs: Tensors, params: Any) -> Any:
        seen.append(params.get("prompt_length"))
        return answer(inputs, params)

    model.handler = watched
    with FakeServer(model) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings(timeout_s=5)).test_client()
        matrix(http, inputs=[ids_of("hi"), "hi"], prompt_name="query")
        matrix(http, inputs="hi")
    assert seen == [7, None]


@pytest.mark.parametrize("side", ["right", "Right", None])
def test_long_texts_are_cut_on_the_right(http: FlaskClient, side: str | None) -> None:
    got = matrix(http, inputs=["a" * 100 + "b", [97] * 100], truncation_direction=side, truncate=None)
    np.testing.assert_allclose(got, [unit(ids_of("a" * 62)), unit([97] * 64)], rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "Left"])
def test_long_texts_are_cut_on_the_left(http: FlaskClient, side: str) -> None:
    got = matrix(http, inputs=["b" * 20_000 + "a" * 62, [98] + [97] * 64], truncation_direction=side)
    np.testing.assert_allclose(got, [unit(ids_of("a" * 62)), unit([97] * 64)], rtol=1e-6)


@pytest.mark.parametrize(("side", "kept"), [(None, "b"), ("Right", "a")])
def test_a_model_may_say_which_side_is_cut(side: str | None, kept: str) -> None:
    model = embedding_model("m")
    assert model.info.text is not None
    model.info.text.truncation_direction = "left"
    texts = ["a" * 20_000 + "b" * 62, [97] * 64 + [98] * 64]
    with FakeServer(model) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings(timeout_s=5)).test_client()
        got = matrix(http, inputs=texts, truncation_direction=side)
    np.testing.assert_allclose(got, [unit(ids_of(kept * 62)), unit([ord(kept)] * 64)], rtol=1e-6)


def test_normalize_and_dimensions(http: FlaskClient) -> None:
    raw = matrix(http, inputs="x", normalize=False)
    np.testing.assert_allclose(raw, [fake_vector(ids_of("x"))], rtol=1e-6)
    short = matrix(http, inputs="x", dimensions=3)
    assert short.shape == (1, 3)
    np.testing.assert_allclose(np.linalg.norm(short), 1, rtol=1e-5)


def test_headers_tell_what_it_took(http: FlaskClient) -> None:
    headers = http.post("/embed", json={"inputs": ["abc", "d"]}).headers
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-model-version"] == "1"
    assert headers["x-compute-characters"] == "4"
    assert headers["x-compute-tokens"] == "8"
    for name in ("compute", "total", "tokenization", "queue", "inference"):
        assert int(headers[f"x-{name}-time"]) >= 0


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"inputs": ""}, 400, "Empty", "`inputs`"),
        ({"inputs": []}, 400, "Empty", "`inputs`"),
        ({"inputs": ["a", ""]}, 400, "Empty", "`inputs[1]`"),
        ({"inputs": [[1], []]}, 400, "Empty", "`inputs[1]`"),
        ({"inputs": ["a", 3]}, 422, "Validation", "inputs[1]"),
        ({"inputs": [3, "a"]}, 422, "Validation", "inputs[0]"),
        ({"inputs": ["a", 1.5]}, 422, "Validation", "inputs[1]"),
        ({"inputs": ["a", None]}, 422, "Validation", "inputs[1]"),
        ({"inputs": [[1, "a"]]}, 422, "Validation", "inputs[0][1]"),
        ({"inputs": 3.5}, 422, "Validation", "inputs"),
        ({}, 422, "Validation", "inputs"),
        ([], 422, "Validation", "object"),
        ({"inputs": [300]}, 422, "Validation", "257"),
        ({"inputs": [-1]}, 422, "Validation", "257"),
        ({"inputs": [10**30]}, 422, "Validation", "257"),
        ({"inputs": "a", "truncate": "no"}, 422, "Validation", "truncate"),
        ({"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
        ({"inputs": "a", "prompt_name": "nope"}, 422, "Validation", "query"),
        ({"inputs": "a", "dimensions": 0}, 422, "Validation", "dimensions"),
        ({"inputs": "a", "dimensions": 9}, 422, "Validation", "dimensions"),
        ({"inputs": ["a", "b" * 63], "truncate": False}, 422, "Validation", "input 1 has 65 tokens"),
        ({"inputs": ["a", [97] * 65], "truncate": False}, 422, "Validation", "input 1 has 65 tokens"),
        (
            {"inputs": ["a", "b" * 20_000], "truncate": False},
            422,
            "Validation",
            "input 1 has 20000 characters",
        ),
    ],
)
def test_a_bad_request_says_what_is_wrong(
    http: FlaskClient, body: Any, status: int, kind: str, words: str
) -> None:
    answer = http.post("/embed", json=body)
    error = answer.get_json()
    assert (answer.status_code, error["error_type"]) == (status, kind), error
    assert words in error["error"]


def test_ids_that_just_fit_are_not_refused(http: FlaskClient) -> None:
    np.testing.assert_allclose(matrix(http, inputs=[97] * 64, truncate=False), [unit([97] * 64)], rtol=1e-6)


def failing(error: RemoteError) -> FakeModel:
    def fail(inputs: Tensors, params: Any) -> dict[str, Any]:
        raise error

    return FakeModel(embedding_model().info, fail, embedding_model().tokenizer)


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (Overloaded("full", {"retry_after_ms": 2500}), 429, "Overloaded", "3"),
        (ModelFailed("boom"), 424, "Backend", None),
        (OutOfMemory("no room"), 424, "Backend", None),
    ],
)
def test_a_failure_of_the_model_has_its_status(
    error: RemoteError, status: int, kind: str, retry_after: str | None
) -> None:
    with FakeServer(failing(error)) as server, Client(server.endpoint) as client:
        answer = create_app(client, Settings()).test_client().post("/embed", json={"inputs": "a"})
    assert (answer.status_code, answer.get_json()["error_type"]) == (status, kind)
    assert answer.get_json()["error"] == error.message
    assert answer.headers.get("Retry-After") == retry_after


def test_an_item_that_fails_alone_fails_the_request_by_name(
    http: FlaskClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.requests

    def with_item_error(parts: list[Tensors], **options: Any) -> Any:
        replies = real(parts, **options)
        replies[0].header.item_errors = (ItemError(1, "out_of_memory", "no room"),)
        return replies

    monkeypatch.setattr(client, "requests", with_item_error)
    answer = http.post("/embed", json={"inputs": ["a", "b"]})
    assert answer.status_code == 424
    assert answer.get_json()["error"] == "item 1: no room"


def test_a_new_tokenizer_is_fetched_when_the_daemon_asks_for_it() -> None:
    model = embedding_model()
    refusals = [StaleTokenizer("another tokenizer")]

    def stale_once(inputs: Tensors, params: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return model.handler(inputs, params)

    with (
        FakeServer(FakeModel(model.info, stale_once, model.tokenizer)) as server,
        Client(server.endpoint) as client,
    ):
        http = create_app(client, Settings()).test_client()
        np.testing.assert_allclose(matrix(http, inputs="a"), [unit(ids_of("a"))], rtol=1e-6)
        assert server.requests["hello"] == 2


def test_a_slow_answer_is_504() -> None:
    release = threading.Event()

    def wait(inputs: Tensors, params: Any) -> Any:
        release.wait(60)
        return {"embedding": np.zeros((1, 8), np.float32)}

    model = FakeModel(embedding_model().info, wait, embedding_model().tokenizer)
    with FakeServer(model) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings(timeout_s=0.3)).test_client()
        client.tokenizer()
        started = time.monotonic()
        answer = http.post("/embed", json={"inputs": "a"})
        assert time.monotonic() - started < 10
        until(lambda: http.get("/health").status_code == 200, "the daemon answers beside it", 10)
        release.set()
    assert answer.status_code == 504
    assert answer.get_json()["error_type"] == "Timeout"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/v1/embeddings", {"input": "a", "model": "m"}),
        ("/v1/models/m/infer", {"inputs": {"x": [1]}}),
        ("/v1/models", None),
        ("/v1/models/m", None),
        ("/info", None),
        ("/health", None),
        ("/readyz", None),
        ("/metrics", None),
    ],
)
def test_every_route_ends_in_time_where_the_daemon_is_silent(silent: str, path: str, body: Any) -> None:
    with Client(silent) as client, Metronome() as metronome:
        http = create_app(client, Settings(timeout_s=0.3)).test_client()
        connect(client)
        started = time.monotonic()
        answer = http.get(path) if body is None else http.post(path, json=body)
        assert metronome.ran_s(started) < 1.4
    expected = {"/health": 503, "/readyz": 503, "/metrics": 200}.get(path, 504)
    assert answer.status_code == expected


def test_more_lists_than_items_can_be_are_refused_before_they_are_made(client: Client) -> None:
    http = create_app(client, Settings()).test_client()
    many = b"[]," * 100_000
    tracemalloc.start()
    answer = http.post(
        "/embed",
        data=b'{"inputs": ["' + b"[" * 100 + b'",' + many + b"[]]}",
        content_type="application/json",
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (answer.status_code, answer.get_json()["error_type"]) == (422, "Validation")
    assert answer.get_json()["error"].startswith("inputs: more than")
    assert peak < 3_000_000


def test_brackets_inside_strings_are_not_lists(client: Client) -> None:
    http = create_app(client, Settings()).test_client()
    assert matrix(http, inputs=["[" * 70_000, '\\"[' * 2_000]).shape == (2, 8)


def test_the_first_embedding_model_is_used_wherever_it_stands() -> None:
    with FakeServer(echo_model(), embedding_model()) as server, Client(server.endpoint) as client:
        assert matrix(create_app(client, Settings()).test_client(), inputs="a").shape == (1, 8)


def test_without_an_embedding_model_it_is_424() -> None:
    with FakeServer(echo_model()) as server, Client(server.endpoint) as client:
        answer = create_app(client, Settings()).test_client().post("/embed", json={"inputs": "a"})
    assert (answer.status_code, answer.get_json()["error_type"]) == (424, "Backend")


def test_while_models_load_it_is_503(
    http: FlaskClient, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "state", "loading")
    answer = http.post("/embed", json={"inputs": "a"})
    assert (answer.status_code, answer.get_json()["error_type"]) == (503, "Unhealthy")
    assert int(answer.headers["Retry-After"]) >= 1


def test_info(http: FlaskClient) -> None:
    info = http.get("/info").get_json()
    assert info["model_id"] == info["served_model_name"] == "fake/embedding"
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (64, 2048)
    assert info["max_concurrent_requests"] == Settings().threads
    assert {"model_sha", "model_dtype", "max_concurrent_requests", "max_batch_tokens", "max_batch_requests",
            "auto_truncate", "tokenization_workers", "version", "sha", "docker_label"} <= info.keys()  # fmt: skip


@pytest.mark.parametrize("path", ["/health", "/", "/ping"])
def test_health(http: FlaskClient, server: FakeServer, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    healthy = http.get(path)
    assert (healthy.status_code, healthy.data, healthy.is_json) == (200, b"", False)
    monkeypatch.setattr(server, "state", "draining")
    sick = http.get(path)
    assert (sick.status_code, sick.get_json()["error_type"]) == (503, "Unhealthy")
    assert "draining" in sick.get_json()["error"]
