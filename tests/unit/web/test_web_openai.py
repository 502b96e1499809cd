"""The routes of OpenAI's clients; the real client is run in tests/integration/test_web_workers.py."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_embeddings(http: FlaskClient, path: str) -> None:
    body = http.post(path, json={"model": "fake/embedding", "input": ["ab", "c"], "user": "u"}).get_json()
    assert body["object"] == "list"
    assert body["model"] == "fake/embedding"
    assert [(d["object"], d["index"], len(d["embedding"])) for d in body["data"]] == [
        ("embedding", 0, 8),
        ("embedding", 1, 8),
    ]
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


def test_base64_is_the_same_vector(http: FlaskClient) -> None:
    ask = {"input": "ab", "dimensions": 4}
    [plain] = http.post("/v1/embeddings", json=ask).get_json()["data"]
    [coded] = http.post("/v1/embeddings", json=ask | {"encoding_format": "base64"}).get_json()["data"]
    decoded = np.frombuffer(b64decode(coded["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, np.array(plain["embedding"], np.float32))
    assert decoded.shape == (4,)


@pytest.mark.parametrize("given", ["ab", [256, 97, 98, 257], [[256, 97, 98, 257]], ["ab"]])
def test_every_form_of_input(http: FlaskClient, given: Any) -> None:
    body = http.post("/v1/embeddings", json={"input": given, "model": "embedding"}).get_json()
    expected = http.post("/v1/embeddings", json={"input": "ab"}).get_json()
    assert body == expected


@pytest.mark.parametrize(
    ("body", "status", "kind", "param", "words"),
    [
        ({"input": ""}, 400, "invalid_request_error", "input", "`input`"),
        ({"input": ["a", 1.5]}, 422, "invalid_request_error", "input[1]", "float"),
        ({"input": "a", "encoding_format": "hex"}, 422, "invalid_request_error", "encoding_format", "hex"),
        ({"input": "a", "dimensions": 99}, 422, "invalid_request_error", "dimensions", "99"),
        ({"input": "a", "model": "gpt-9"}, 404, "invalid_request_error", None, "fake/embedding, echo"),
        ({"input": "a", "model": "echo"}, 424, "server_error", None, "echo"),
        ({"model": "echo"}, 422, "invalid_request_error", "input", "missing"),
    ],
)
def test_errors_have_openai_s_shape(
    http: FlaskClient, body: Any, status: int, kind: str, param: str | None, words: str
) -> None:
    answer = http.post("/v1/embeddings", json=body)
    error = answer.get_json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, kind, param)
    assert words in error["message"]


def test_an_unknown_model_has_openai_s_code(http: FlaskClient) -> None:
    error = http.post("/v1/embeddings", json={"input": "a", "model": "gpt-9"}).get_json()["error"]
    assert error["code"] == "model_not_found"


def test_models(http: FlaskClient) -> None:
    listed = http.get("/v1/models").get_json()
    assert [m["id"] for m in listed["data"]] == ["fake/embedding", "echo"]
    for path in ("/v1/models/fake/embedding", "/v1/models/fake%2Fembedding", "/v1/models/embedding"):
        assert http.get(path).get_json() == listed["data"][0]
    assert http.get("/v1/models/nope").status_code == 404
