"""Routes that do not suit the model, and sizes that do not fit: a precise error in the dialect of the route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_heads import classifier, reranker
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeModel, FakeServer, echo_model, embedding_model
from web import create_app
from web.settings import Settings

EMBED = {"inputs": "a"}
RERANK = {"query": "q", "texts": ["a"]}
RANK = {"query": "q", "documents": ["a"]}


def app(*models: FakeModel, **settings: Any) -> Iterator[FlaskClient]:
    with FakeServer(*models) as server, Client(server.endpoint) as client:
        yield create_app(client, Settings(**settings)).test_client()


@pytest.fixture
def ranks() -> Iterator[FlaskClient]:
    yield from app(reranker())


@pytest.fixture
def embeds() -> Iterator[FlaskClient]:
    yield from app(embedding_model())


@pytest.fixture
def classifies() -> Iterator[FlaskClient]:
    yield from app(classifier(), echo_model())


def message(answer: Any) -> str:
    """The message of an error in any dialect."""
    body = answer.get_json()
    error = body.get("error", body.get("message"))
    found: str = error["message"] if isinstance(error, dict) else error
    return found


@pytest.mark.parametrize(
    ("path", "body"), [("/embed", EMBED), ("/v1/embeddings", {"input": "a"}), ("/embed_all", EMBED)]
)
def test_a_reranker_does_not_embed(ranks: FlaskClient, path: str, body: dict[str, Any]) -> None:
    answer = ranks.post(path, json=body)
    assert answer.status_code == 424
    assert message(answer) == "model 'fake/reranker' is not an embedding model; its kind is reranker"


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/rerank", RERANK, "a reranker"),
        ("/v1/rerank", RANK, "a reranker"),
        ("/v2/rerank", RANK, "a reranker"),
        ("/predict", EMBED, "a classifier or reranker"),
        ("/v1/classify", {"input": "a"}, "a classifier or reranker"),
        ("/embed_sparse", EMBED, "a sparse embedding model"),
        ("/token_classification", EMBED, "a token classifier"),
    ],
)
def test_an_embedding_model_scores_nothing(
    embeds: FlaskClient, path: str, body: dict[str, Any], what: str
) -> None:
    answer = embeds.post(path, json=body)
    assert answer.status_code == 424
    assert message(answer) == f"model 'fake/embedding' is not {what}; its kind is embedding"


def test_where_no_model_suits_all_are_listed(classifies: FlaskClient) -> None:
    answer = classifies.post("/embed", json=EMBED)
    assert answer.get_json() == {
        "error": "no served model is an embedding model; served: fake/classifier (classifier), echo (custom)",
        "error_type": "Backend",
    }


def test_errors_have_the_shape_of_their_dialect(embeds: FlaskClient) -> None:
    assert embeds.post("/rerank", json=RERANK).get_json()["error_type"] == "Backend"
    openai = embeds.post("/v1/rerank", json=RANK).get_json()["error"]
    assert (openai["type"], openai["code"]) == ("server_error", "unsupported_operation")
    assert set(embeds.post("/v2/rerank", json=RANK).get_json()) == {"id", "message"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/embed", {"inputs": [["a", "b"]]}, "inputs[0][0]"),
        ("/v1/embeddings", {"input": [["a", "b"]]}, "input[0][0]"),
    ],
)
def test_pairs_are_not_embedded(embeds: FlaskClient, path: str, body: dict[str, Any], field: str) -> None:
    answer = embeds.post(path, json=body)
    assert answer.status_code == 422
    assert message(answer).startswith(field)


def test_kserve_pairs_need_a_model_that_takes_them(embeds: FlaskClient) -> None:
    text = {"datatype": "BYTES", "shape": [1], "data": ["a"]}
    inputs = [{"name": "text", **text}, {"name": "text_pair", **text}]
    answer = embeds.post("/v2/models/embedding/infer", json={"inputs": inputs})
    assert (answer.status_code, message(answer)) == (424, "model 'fake/embedding' takes no pairs of texts")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/rerank", {**RERANK, "texts": ["a", "b" * 70], "truncate": False}, "input 1 has 74 tokens"),
        (
            "/rerank",
            {**RERANK, "texts": ["a"] * 10_000},
            "texts: batch size 10000 > maximum allowed batch size 2048",
        ),
        ("/v2/rerank", {**RANK, "documents": ["a"] * 10_000}, "documents: batch size 10000"),
        ("/v1/rerank", {**RANK, "documents": []}, "`documents` cannot be empty"),
        ("/predict", {"inputs": ["a", "b", "c"]}, "inputs: 3 texts, where one or a pair is expected"),
    ],
)
def test_sizes_are_named(ranks: FlaskClient, path: str, body: dict[str, Any], words: str) -> None:
    answer = ranks.post(path, json=body)
    assert answer.status_code in (400, 422)
    assert message(answer).startswith(words)


def test_ten_thousand_documents_where_they_are_allowed() -> None:
    for http in app(reranker(), max_client_batch_size=10_000):
        answer = http.post(
            "/rerank", json={"query": "q", "texts": ["a" * (i % 7 + 1) for i in range(10_000)]}
        )
        assert answer.status_code == 200
        scores = {entry["index"]: entry["score"] for entry in answer.get_json()}
        assert len(scores) == 10_000
        assert scores[6] == scores[9_995] == max(scores.values())
