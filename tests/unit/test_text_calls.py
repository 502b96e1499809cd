"""The client's text calls against a fake server: tokenised here and there, split, refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpu_server import text_calls, tokenizing
from gpu_server.aio import AsyncClient
from gpu_server.client import Client
from gpu_server.errors import InvalidRequest, MissingDependency, UnsupportedOperation
from gpu_server.scores import activate
from gpu_server.sizes import OFFSET_BYTES, split_to_fit
from gpu_server.testing import (
    FakeServer,
    embedding_model,
    fake_vector,
    scores_model,
    sparse_model,
    token_classifier_model,
)
from gpu_server.tokenizing import Direction
from gpu_server.wire import Limits, Tensor, Tensors

LABELS = ("sad", "glad", "mad")
MODELS = (
    embedding_model("embedding"),
    scores_model("reranker"),
    scores_model("classifier", LABELS),
    sparse_model("sparse"),
    token_classifier_model("tokens"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(*MODELS, limits=Limits(max_items=3)) as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.endpoint) as made:
        yield made


def pair_logits(first: str, second: str, labels: int = 1) -> np.ndarray:
    """What the fake answers for a pair, from what the byte tokenizer makes of it."""
    a, b = list(first.encode()), list(second.encode())
    ids = [256, *a, 257, *b, 257]
    return fake_vector([*ids, *[0] * (len(a) + 2), *[1] * (len(b) + 1)], labels)


def text_logits(text: str, labels: int) -> np.ndarray:
    ids = [256, *text.encode(), 257]
    return fake_vector([*ids, *[0] * len(ids)], labels)


def test_rerank_keeps_the_order_given(client: Client, server: FakeServer) -> None:
    documents = ["one", "two", "three", "four"]
    logits = np.concatenate([pair_logits("q", d) for d in documents])
    before = server.requests.get("infer", 0)
    np.testing.assert_array_equal(client.rerank("q", documents, model="reranker", raw_scores=True), logits)
    assert server.requests["infer"] == before + 2
    np.testing.assert_array_equal(
        client.rerank("q", documents, model="reranker"), activate(logits, "sigmoid")
    )
    assert client.rerank("q", [], model="reranker").shape == (0,)


def test_classify_takes_texts_and_pairs(client: Client) -> None:
    want = activate(np.stack([text_logits("a", 3), text_logits("bc", 3)]), "softmax")
    np.testing.assert_array_equal(client.classify(["a", "bc"], model="classifier"), want)
    np.testing.assert_array_equal(client.classify("a", model="classifier"), want[:1])
    pairs = client.classify([("a", "b"), ("c", "d")], model="classifier", raw_scores=True)
    np.testing.assert_array_equal(pairs, np.stack([pair_logits("a", "b", 3), pair_logits("c", "d", 3)]))
    np.testing.assert_array_equal(client.classify(("a", "b"), model="classifier", raw_scores=True), pairs[:1])
    assert client.classify([], model="classifier").shape == (0, 3)


def test_sparse_vectors(client: Client) -> None:
    first, second = client.embed_sparse(["aab", "c"], model="sparse")
    assert (first.indices.tolist(), first.values.tolist()) == ([97, 98, 256, 257], [2, 1, 1, 1])
    assert (first.indices.dtype, first.values.dtype) == (np.int32, np.float32)
    assert second.indices.tolist() == [99, 256, 257]
    second.values[0] = 5


def test_token_embeddings(client: Client) -> None:
    rows = client.embed_tokens(["ab", "c"], model="embedding")
    want = [np.stack([fake_vector([i]) for i in ids]) for ids in ([256, 97, 98, 257], [256, 99, 257])]
    for got, expected in zip(rows, want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_answers_that_grow_with_tokens_are_asked_for_in_parts(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["ab", "c", "d", "e", "x" * 40]
    whole = [row.tolist() for row in client.embed_tokens(texts, model="embedding")]
    labels = client.classify_tokens(texts, model="tokens")
    before = server.requests["infer"]
    # Of 4, 3, 3, 3 and 42 tokens, whose ids and offsets come to 20, 16, 16, 16 and 172 bytes.
    monkeypatch.setattr(text_calls, "TOKEN_FLOATS", 14 * client.model("embedding").dimensions)
    assert [row.tolist() for row in client.embed_tokens(texts, model="embedding")] == whole
    assert server.requests["infer"] == before + 3
    monkeypatch.setattr(text_calls, "TOKEN_FLOATS", 14 * len(client.model("tokens").labels))
    assert client.classify_tokens(texts, model="tokens") == labels
    assert server.requests["infer"] == before + 6


def test_labels_of_tokens(client: Client) -> None:
    ((first, second), (only,)) = client.classify_tokens(["ab", "c"], model="tokens")
    assert (first.token, first.label, first.start, first.end) == ("a", "odd", 0, 1)
    assert (second.token, second.label, second.start, second.end) == ("b", "even", 1, 2)
    assert (only.label, only.score > 0.99) == ("odd", True)
    (cut,) = client.classify_tokens("x" * 100, model="tokens")
    assert len(cut) == 62


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.embed("a", model="reranker"), "is not an embedding model"),
        (lambda c: c.embed_tokens("a", model="sparse"), "is not an embedding model"),
        (lambda c: c.embed_sparse("a", model="embedding"), "is not a sparse model"),
        (lambda c: c.rerank("a", ["b"], model="classifier"), "is not a reranker"),
        (lambda c: c.classify("a", model="embedding"), "is not a classifier"),
        (lambda c: c.classify_tokens("a", model="embedding"), "is not a token classifier"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    client: Client, call: Callable[[Client], object], message: str
) -> None:
    with pytest.raises(UnsupportedOperation, match=message):
        call(client)


@pytest.mark.parametrize(
    ("texts", "item"), [([1], 0), ([("a", "b"), "c"], 1), (["a", ("b", "c")], 1), ([("a", "b", "c")], 0)]
)
def test_what_is_neither_text_nor_pair_is_named(client: Client, texts: list[str], item: int) -> None:
    with pytest.raises(InvalidRequest, match=f"text {item} is"):
        client.classify(texts, model="classifier")


def test_pairs_are_for_models_that_take_them(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="text 0 is tuple, not str"):
        client.embed([("a", "b")], model="embedding")
    with pytest.raises(UnsupportedOperation, match="model 'embedding' takes no pairs of texts"):
        client.text_request([("a", "b")], model="embedding")


def test_ten_thousand_documents_are_split_and_keep_their_order() -> None:
    documents = [f"{i}" for i in range(10_000)]
    # The fake takes a second for them where a core is free; no outcome depends on how fast it is.
    with FakeServer(scores_model("m")) as server, Client(server.endpoint, timeout_s=600) as client:
        scores = client.rerank("q", documents, raw_scores=True)
        assert server.requests["infer"] == 5
        for i in (0, 2047, 2048, 9_999):
            assert scores[i] == pair_logits("q", documents[i])[0]
        with pytest.raises(InvalidRequest, match="input 9999 has 104 tokens, more than max_length = 64"):
            client.rerank("q", [*documents[:-1], "x" * 100], truncate=False)


def test_too_long_pairs(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="max_length = 64"):
        client.rerank("q" * 60, ["d" * 60], model="reranker", truncate=False)
    half = pair_logits("q" * 31, "d" * 30)
    left = client.rerank("q" * 60, ["d" * 60], model="reranker", raw_scores=True)
    assert left.shape == half.shape


def test_without_a_tokenizer_text_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, list[str]]] = []
    model = scores_model("reranker")

    def answer(inputs: dict[str, Tensor], params: object) -> dict[str, np.ndarray]:
        seen.append({name: tensor.strings() for name, tensor in inputs.items()})
        return {"logits": np.zeros((len(seen[-1]["text"]), 1), np.float32)}

    model.handler = answer  # type: ignore[assignment]
    monkeypatch.setattr(tokenizing, "available", lambda: False)
    with FakeServer(model, token_classifier_model("tokens")) as server, Client(server.endpoint) as client:
        client.rerank("q", ["a", "b"])
        client.classify(["c"])
        assert seen == [{"text": ["q", "q"], "text_pair": ["a", "b"]}, {"text": ["c"]}]


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
        client.embed("a", prompt_name="query")
        client.embed_tokens("a")
    assert seen == [7, None]


@pytest.mark.parametrize(("direction", "kept"), [(None, "b"), ("left", "b"), ("right", "a")])
def test_a_model_may_say_which_side_is_cut(direction: Direction | None, kept: str) -> None:
    model = embedding_model("m")
    assert model.info.text is not None
    model.info.text.truncation_direction = "left"
    with FakeServer(model) as server, Client(server.endpoint) as client:
        got = client.embed("a" * 62 + "b" * 62, direction=direction)
        np.testing.assert_array_equal(got, client.embed(kept * 62))


def test_no_texts_have_as_many_dimensions_as_the_model_keeps() -> None:
    model = embedding_model("m", dimensions=8)
    model.info.params = {"dimensions": 4}
    with FakeServer(model) as server, Client(server.endpoint) as client:
        assert client.embed([]).shape == (0, 4)


def test_asyncio_has_the_same_calls(server: FakeServer, client: Client) -> None:
    async def all_of_them() -> None:
        async with AsyncClient(server.endpoint) as mine:
            ranked = await mine.rerank("q", ["a", "b"], model="reranker")
            np.testing.assert_array_equal(ranked, client.rerank("q", ["a", "b"], model="reranker"))
            scores = await mine.classify(["a"], model="classifier")
            np.testing.assert_array_equal(scores, client.classify(["a"], model="classifier"))
            (vector,) = await mine.embed_sparse(["a"], model="sparse")
            assert vector.indices.tolist() == [97, 256, 257]
            (tokens,) = await mine.embed_tokens(["a"], model="embedding")
            assert tokens.shape == (3, 8)
            ((label,),) = await mine.classify_tokens(["a"], model="tokens")
            assert label.label == "odd"
            reply = await mine.text_request([("q", "a")], model="reranker")
            assert reply.outputs["logits"].items == 1

    asyncio.run(all_of_them())


def test_inputs_are_split_together() -> None:
    ids = Tensor.from_rows([[1], [2, 3], [4, 5, 6], [7]])
    inputs = {"input_ids": ids, "token_type_ids": ids}
    room = 2 * OFFSET_BYTES + 2 * (3 * 4 + OFFSET_BYTES)
    parts = split_to_fit(inputs, Limits(max_request_bytes=room))
    rows = [[row.tolist() for row in part["token_type_ids"].rows()] for part in parts]
    assert rows == [[[1]], [[2, 3]], [[4, 5, 6]], [[7]]]
    wide = split_to_fit(inputs, Limits(max_items=3))
    assert [part["input_ids"].items for part in wide] == [3, 1]


def test_labels_of_tokens_need_the_tokenizer(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "available", lambda: False)
    with Client(server.endpoint) as client, pytest.raises(MissingDependency, match="tokenizers"):
        client.classify_tokens("a", model="tokens")
