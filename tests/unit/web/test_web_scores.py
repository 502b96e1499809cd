"""/predict, /rerank, /embed_sparse and their kin, in every dialect."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_heads import MAX_LENGTH, classifier, reranker, sparse, token_classifier
from flask.testing import FlaskClient

from gpu_server.client import Client
from gpu_server.testing import FakeModel, FakeServer, byte_tokenizer, embedding_model, scores_model
from gpu_server.tokenizing import TextTokenizer, digest
from gpu_server.wire import Limits, Tensor
from gpu_server.wire.documents import TextInfo
from web import create_app
from web.inputs import CHARACTERS_PER_TOKEN, cut_characters
from web.settings import Settings


def token_embeddings() -> FakeModel:
    """An embedding model that can give each token's vector: its id, twice."""
    model = embedding_model()
    model.info.outputs = ("embedding", "token_embeddings")

    def handler(inputs: Any, params: Any) -> Any:
        if params.get("output") != "token_embeddings":
            return model.handler(inputs, params)
        rows = [np.stack([row, row], 1).astype("<f4") for row in inputs["input_ids"].rows()]
        return {"token_embeddings": Tensor.from_rows(rows, "f32")}

    return FakeModel(model.info, handler, model.tokenizer)


@pytest.fixture
def http() -> Iterator[FlaskClient]:
    models = (token_embeddings(), reranker(), classifier(), token_classifier(), sparse())
    with FakeServer(*models, limits=Limits(max_items=3)) as server, Client(server.endpoint) as client:
        yield create_app(client, Settings()).test_client()


def ask(http: FlaskClient, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.get_json()
    return answer.get_json()


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


DOCUMENTS = ["a" * 4, "b" * 29, "c" * 9, "d" * 14, "e" * 19]
ORDER = [1, 4, 3, 2, 0]
SCORES = [sigmoid((len(d) + 1 - 10) / 10) for d in DOCUMENTS]


def test_rerank_sorts_and_gives_texts_when_asked(http: FlaskClient) -> None:
    answer = ask(http, "/rerank", query="q", texts=DOCUMENTS)
    assert [a["index"] for a in answer] == ORDER
    np.testing.assert_allclose([a["score"] for a in answer], [SCORES[i] for i in ORDER], rtol=1e-6)
    assert set(answer[0]) == {"index", "score"}
    raw = ask(
        http,
        "/models/reranker/rerank",
        query="q",
        texts=["a" * 9, "b" * 19],
        raw_scores=True,
        return_text=True,
    )
    assert raw == [{"index": 1, "score": 1.0, "text": "b" * 19}, {"index": 0, "score": 0.0, "text": "a" * 9}]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/v1/models/reranker/rerank"])
def test_rerank_as_cohere_jina_and_vllm_ask(http: FlaskClient, path: str) -> None:
    asked = {"model": "reranker", "query": "q", "documents": [*DOCUMENTS[:4], {"text": DOCUMENTS[4], "x": 1}]}
    answer = ask(http, path, **asked, top_n=2, return_documents=True)
    assert [r["index"] for r in answer["results"]] == ORDER[:2]
    assert answer["results"][1]["document"] == {"text": DOCUMENTS[4]}
    assert answer["model"] == "fake/reranker"
    assert answer["usage"]["total_tokens"] == sum(len(d) + 4 for d in DOCUMENTS)
    everything = ask(http, path, **asked)["results"]
    np.testing.assert_allclose(
        [r["relevance_score"] for r in everything], [SCORES[i] for i in ORDER], rtol=1e-6
    )
    assert "document" not in everything[0]


def test_headers_count_both_texts(http: FlaskClient) -> None:
    headers = http.post("/rerank", json={"query": "q", "texts": ["ab", "c"]}).headers
    assert headers["x-compute-tokens"] == str(4 + 2 + 4 + 1)
    assert headers["x-compute-characters"] == "5"


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        ("abc", ["long", "none", "pair"]),
        (["ab", "c"], ["pair", "long", "none"]),
        ([["ab", "c"]], [["pair", "long", "none"]]),
        ([["abc"], ["ab", "c"]], [["long", "none", "pair"], ["pair", "long", "none"]]),
    ],
)
def test_predict_takes_every_form(http: FlaskClient, inputs: Any, labels: Any) -> None:
    answer = ask(http, "/predict", inputs=inputs, parameters={}, model="classifier")
    single = isinstance(answer[0], dict)
    rows = [answer] if single else answer
    named = [[p["label"] for p in row] for row in rows]
    assert (named[0] if single else named) == labels
    for row in rows:
        assert sum(p["score"] for p in row) == pytest.approx(1)
        assert [p["score"] for p in row] == sorted((p["score"] for p in row), reverse=True)


def test_predict_raw_scores_and_a_reranker(http: FlaskClient) -> None:
    raw = ask(http, "/models/classifier/predict", inputs="a" * 8, raw_scores=True)
    assert raw == [
        {"score": 1.0, "label": "long"},
        {"score": 0.0, "label": "none"},
        {"score": 0.0, "label": "pair"},
    ]
    [one] = ask(http, "/predict", inputs=["q", "a" * 9])
    assert (one["label"], one["score"]) == ("LABEL_0", 0.5)


def test_score(http: FlaskClient) -> None:
    answer = ask(http, "/v1/score", text_1="q", text_2=DOCUMENTS)
    assert [d["object"] for d in answer["data"]] == ["score"] * 5
    np.testing.assert_allclose([d["score"] for d in answer["data"]], SCORES, rtol=1e-6)
    both = ask(http, "/score", queries=["q", "q"], documents=DOCUMENTS[:2], model="reranker")
    np.testing.assert_allclose([d["score"] for d in both["data"]], SCORES[:2], rtol=1e-6)
    cosine = ask(http, "/v1/score", text_1="same", text_2="same", model="embedding")
    assert cosine["data"][0]["score"] == pytest.approx(1)


def test_without_a_reranker_an_embedding_model_scores_also_unnamed() -> None:
    with FakeServer(classifier(), embedding_model()) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings()).test_client()
        answer = ask(http, "/score", text_1="same", text_2=["same", "other"])
    assert answer["model"] == "fake/embedding"
    same, other = [entry["score"] for entry in answer["data"]]
    assert same == pytest.approx(1) and other < 0.999


def test_classify(http: FlaskClient) -> None:
    answer = ask(http, "/v1/classify", input=["a", "b" * 30], model="classifier")
    assert [(d["label"], d["num_classes"], len(d["probs"])) for d in answer["data"]] == [("long", 3, 3)] * 2
    assert answer["usage"]["total_tokens"] == 35


def test_sparse_gives_indices_and_values(http: FlaskClient) -> None:
    answer = ask(http, "/embed_sparse", inputs=["aab", "c"])
    assert answer[0] == [
        {"index": 97, "value": 0.2},
        {"index": 98, "value": 0.1},
        {"index": 256, "value": 0.1},
        {"index": 257, "value": 0.1},
    ]
    assert [v["index"] for v in answer[1]] == [99, 256, 257]


def test_vectors_of_more_tokens_than_an_answer_may_hold_are_not_computed() -> None:
    with FakeServer(embedding_model()) as server, Client(server.endpoint) as client:
        # Four tokens of 8 float32 each.
        http = create_app(client, Settings(max_answer_bytes=128)).test_client()
        assert http.post("/embed_all", json={"inputs": ["ab"]}).status_code == 200
        before = server.requests["infer"]
        answer = http.post("/embed_all", json={"inputs": ["abc"]})
        assert (answer.status_code, server.requests["infer"]) == (413, before)
        assert "160 bytes of outputs exceed max_answer_bytes = 128" in answer.get_json()["error"]


def test_predictions_are_never_all_there_as_objects() -> None:
    labels = tuple(f"LABEL_{i}" for i in range(500))
    with FakeServer(scores_model("many", labels)) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings()).test_client()
        asked = {"inputs": [["a"]] * 64}
        ask(http, "/predict", **asked)
        tracemalloc.start()
        answer = http.post("/predict", json=asked)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(answer.get_json()) == 64
        assert peak < 4 * len(answer.data)


def test_embed_all_gives_every_token(http: FlaskClient) -> None:
    assert ask(http, "/embed_all", inputs=["a", "bc"]) == [
        [[256, 256], [97, 97], [257, 257]],
        [[256, 256], [98, 98], [99, 99], [257, 257]],
    ]


def test_entities_have_places_in_the_text(http: FlaskClient) -> None:
    text = "1 Ann, 2 Bob"
    found = ask(http, "/token_classification", inputs=text, parameters={})
    assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in found] == [
        ("NAME", "Ann", 2, 5),
        ("NAME", "Bob", 9, 12),
    ]
    options = {"aggregation_strategy": "none", "ignore_labels": ["I-NAME"]}
    [tokens] = ask(http, "/models/ner/token_classification", inputs=["1A"], parameters=options)
    assert [(t["entity"], t["word"], t["index"]) for t in tokens] == [("O", "1", 1), ("B-NAME", "A", 2)]


@pytest.mark.parametrize(
    ("model", "body", "shape"),
    [
        ("reranker", {"query": "q", "texts": ["a"]}, (1,)),
        ("classifier", {"inputs": "a"}, (3,)),
        ("ner", {"inputs": "A b"}, (2,)),
        ("sparse", {"inputs": "a"}, (1, 3)),
        ("embedding", {"inputs": "a"}, (1, 8)),
    ],
)
def test_the_alias_suits_the_model(http: FlaskClient, model: str, body: Any, shape: tuple[int, ...]) -> None:
    assert np.shape(ask(http, f"/models/{model}", **body))[: len(shape)] == shape


def test_vertex_of_a_reranker_takes_queries_and_pairs() -> None:
    with FakeServer(reranker()) as server, Client(server.endpoint) as client:
        http = create_app(client, Settings()).test_client()
        instances = [{"query": "q", "texts": ["a"]}, {"inputs": ["q", "a" * 9]}]
        ranked, predicted = ask(http, "/vertex", instances=instances)["predictions"]
        assert http.get("/info").get_json()["model_type"] == {
            "reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        }
    assert (ranked[0]["index"], predicted[0]["score"]) == (0, 0.5)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "inputs: 3 texts"),
        ("/predict", {"inputs": [["a"], ["a", "b", "c"]]}, 422, "inputs[1]: 3 texts"),
        ("/predict", {"inputs": [["a"], "b"]}, 422, "inputs[1]"),
        ("/predict", {"inputs": [["a"], []]}, 400, "`inputs[1]`"),
        ("/predict", {"inputs": [["a"], ["b", ""]]}, 400, "`inputs[1]`"),
        ("/predict", {"inputs": ""}, 400, "`inputs`"),
        ("/predict", {"inputs": []}, 400, "`inputs`"),
        ("/predict", {"inputs": [["a"]], "model": "sparse"}, 424, "not a classifier"),
        ("/predict", {"inputs": "a" * 99, "truncate": False}, 422, "max_length = 64"),
        ("/predict", {"inputs": ["a" * 99, "b" * 20_000], "truncate": False}, 422, "20000 characters"),
        ("/rerank", {"query": "q", "texts": []}, 400, "`texts`"),
        ("/rerank", {"query": "q", "texts": ["a", ""]}, 400, "`texts[1]`"),
        ("/rerank", {"query": "", "texts": ["a"]}, 400, "`query`"),
        ("/rerank", {"query": "q"}, 422, "texts"),
        ("/rerank", {"texts": ["a"]}, 422, "query"),
        ("/rerank", {"query": "q", "texts": ["a"], "model": "classifier"}, 424, "not a reranker"),
        ("/rerank", {"query": "q", "texts": ["a"] * 2049}, 422, "batch size 2049"),
        ("/embed_sparse", {"inputs": "a", "model": "embedding"}, 424, "not a sparse"),
        ("/embed_all", {"inputs": "a", "model": "sparse"}, 424, "not an embedding"),
        ("/token_classification", {"inputs": "a", "model": "sparse"}, 424, "not a token classifier"),
        ("/token_classification", {"inputs": "a", "parameters": {"aggregation_strategy": "max"}}, 422, "parameters.agg"),
    ],
)  # fmt: skip
def test_a_bad_request_is_named(http: FlaskClient, path: str, body: Any, status: int, words: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.get_json()
    assert words in answer.get_json()["error"]


def test_each_dialect_has_its_own_errors(http: FlaskClient) -> None:
    bad = {"query": "q", "documents": []}
    assert http.post("/rerank", json=bad).get_json()["error_type"] == "Empty"
    assert http.post("/v1/rerank", json=bad).get_json()["error"]["param"] == "documents"
    cohere = http.post("/v2/rerank", json=bad, headers={"x-request-id": "r1"}).get_json()
    assert cohere == {"id": "r1", "message": "`documents` cannot be empty"}
    for body in ({"text_1": "a"}, {"text_1": ["a"] * 2, "text_2": ["b"] * 3}):
        assert http.post("/v1/score", json=body).get_json()["error"]["param"] == "text_2"


def test_a_long_query_is_cut_once_for_all_its_pairs() -> None:
    tokenizer = TextTokenizer(byte_tokenizer(), TextInfo(digest="", max_length=64, vocab_size=258))
    query = "a" * (64 * CHARACTERS_PER_TOKEN + 1)
    pairs = [(query, "b"), (query, "c"), (query, query)]
    cut = cut_characters(pairs, tokenizer, True, "right")
    assert cut == [(query[:-1], "b"), (query[:-1], "c"), (query[:-1], query[:-1])]
    assert len({id(part) for pair in cut for part in pair}) == 3


def test_score_embeds_one_text_once_against_many(http: FlaskClient) -> None:
    answer = ask(http, "/v1/score", text_1="same", text_2=["same", "x", "same"], model="embedding")
    values = [d["score"] for d in answer["data"]]
    assert values == [pytest.approx(1), values[1], pytest.approx(1)]
    assert values[1] < 0.99
    assert answer["usage"]["prompt_tokens"] == 6 + 6 + 3 + 6


def test_entities_of_a_text_that_is_cut_are_those_of_its_beginning(http: FlaskClient) -> None:
    # The leading spaces make no token, so that only the cut keeps the name from the model.
    blank = " " * (MAX_LENGTH * CHARACTERS_PER_TOKEN)
    stripping = token_classifier()
    made = json.loads(stripping.tokenizer)
    made["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    stripping.tokenizer = json.dumps(made).encode()
    assert stripping.info.text is not None
    stripping.info.text.digest = digest(stripping.tokenizer)
    with FakeServer(stripping) as server, Client(server.endpoint) as client:
        web = create_app(client, Settings()).test_client()
        assert ask(web, "/token_classification", inputs=blank + "Ann") == []
        [found] = ask(web, "/token_classification", inputs=blank[:-3] + "Ann")
        assert (found["word"], found["start"]) == ("Ann", len(blank) - 3)


def test_scores_of_other_tokens_than_the_texts_are_a_stale_tokenizer() -> None:
    model = token_classifier()
    short = FakeModel(
        model.info,
        lambda inputs, params: {"logits": Tensor.from_rows([np.zeros((1, 3), np.float32)], "f32")},
        model.tokenizer,
    )
    with FakeServer(short) as server, Client(server.endpoint) as client:
        answer = (
            create_app(client, Settings()).test_client().post("/token_classification", json={"inputs": "A"})
        )
    assert answer.status_code == 409, answer.get_json()
    assert "scored 1 tokens of input 0, which has 3" in answer.get_json()["error"]
