"""/tokenize, /decode and /similarity, answered in the worker or from embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import fake_vector
from web import create_app
from web.routes import text
from web.settings import Settings


def test_tokens_have_ids_texts_and_places(http: FlaskClient) -> None:
    [tokens] = http.post("/tokenize", json={"inputs": "hé"}).get_json()
    assert tokens[0] == {"id": 256, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert tokens[1] == {"id": 104, "text": "h", "special": False, "start": 0, "stop": 1}
    assert [t["id"] for t in tokens] == [256, 104, *"é".encode(), 257]
    assert tokens[2]["text"] == "é"


def test_tokenize_without_special_tokens_after_a_prompt(http: FlaskClient) -> None:
    asked = {"inputs": ["a", "b"], "add_special_tokens": False, "prompt_name": "query"}
    answer = http.post("/models/embedding/tokenize", json=asked).get_json()
    assert ["".join(t["text"] for t in tokens) for tokens in answer] == ["query: a", "query: b"]
    assert not any(t["special"] for tokens in answer for t in tokens)


def test_long_texts_are_not_cut(http: FlaskClient) -> None:
    assert len(http.post("/tokenize", json={"inputs": "a" * 500}).get_json()[0]) == 502


@pytest.mark.parametrize(
    ("ids", "skip", "texts"),
    [
        ([256, 104, 105, 257], None, ["hi"]),
        ([[256, 104, 257], [105]], True, ["h", "i"]),
        ([256, 104], False, ["[CLS]h"]),
    ],
)
def test_decode(http: FlaskClient, ids: Any, skip: bool | None, texts: list[str]) -> None:
    assert http.post("/decode", json={"ids": ids, "skip_special_tokens": skip}).get_json() == texts


def test_similarity_is_the_cosine(http: FlaskClient) -> None:
    asked = {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}, "parameters": {}}
    answer = http.post("/similarity", json=asked)
    a, b = (fake_vector([256, ord(c), 257]) for c in "ab")
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(answer.get_json(), [1, cosine], rtol=1e-5)
    assert answer.headers["x-compute-tokens"] == "9"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/tokenize", {"inputs": []}, 400, "`inputs`"),
        ("/tokenize", {"inputs": ["a", ""]}, 400, "`inputs[1]`"),
        ("/tokenize", {"inputs": [1]}, 422, "inputs[0]"),
        ("/tokenize", {"inputs": ["a"] * 4}, 422, "batch size 4 > maximum allowed batch size 3"),
        ("/tokenize", {"inputs": "a", "prompt_name": "no"}, 422, "query"),
        ("/tokenize", {"inputs": "a", "model": "echo"}, 424, "takes no text"),
        ("/decode", {"ids": []}, 400, "`ids`"),
        ("/decode", {"ids": [1, [2]]}, 422, "ids"),
        ("/decode", {"ids": [-1]}, 422, "outside 0"),
        ("/decode", {"ids": [10**30]}, 422, "outside 0"),
        ("/decode", {"ids": "a"}, 422, "ids"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "inputs.sentences"),
        ("/similarity", {"inputs": {"source_sentence": "", "sentences": ["b"]}}, 400, "source_sentence"),
        ("/similarity", {"inputs": {"sentences": ["b"]}}, 422, "source_sentence"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"] * 3}}, 422, "batch size 4"),
        ("/vertex", {"instances": []}, 422, "instances"),
        ("/vertex", {"instances": [{"inputs": "a"}, {"inputs": 1}]}, 422, "instances[1]"),
        ("/vertex", {"instances": [3]}, 422, "instances[0]"),
        ("/vertex", {"instances": [{"inputs": "a"}] * 513}, 422, "instances"),
    ],
)
def test_a_bad_request_is_named(client: Client, path: str, body: Any, status: int, words: str) -> None:
    http = create_app(client, Settings(max_client_batch_size=3)).test_client()
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.get_json()
    assert words in answer.get_json()["error"]


def test_tokenize_bounds_characters_and_tokens(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    http = create_app(client, Settings()).test_client()
    answer = http.post("/tokenize", json={"inputs": ["a", "a" * 16_001]})
    assert answer.status_code == 422
    wanted = "input 1 has 16001 characters, more than the 16000 that max_length = 64 tokens allows"
    assert answer.get_json()["error"] == wanted
    monkeypatch.setattr(text, "MAX_TOKENS", 20)
    assert http.post("/tokenize", json={"inputs": ["a" * 8] * 2}).status_code == 200
    answer = http.post("/tokenize", json={"inputs": ["a" * 8, "a" * 9]})
    assert (answer.status_code, answer.get_json()["error"].partition(" that")[0]) == (
        422,
        "inputs: more than the 20 tokens",
    )
    few = create_app(client, Settings(max_client_tokens=3)).test_client()
    assert few.post("/tokenize", json={"inputs": "a"}).status_code == 200
    assert "max_client_tokens = 3" in few.post("/tokenize", json={"inputs": "ab"}).get_json()["error"]
