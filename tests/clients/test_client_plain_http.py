"""What no client package has a method for, asked as TEI's own pages show it."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from expectations import QUERY, TEXTS, Expectations


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/embed_sparse", "/models/sparse"])
def test_sparse_embeddings(url: str, expected: Expectations, path: str) -> None:
    for rows, text in zip(ask(url, path, {"inputs": TEXTS}), TEXTS, strict=True):
        expected.sparse(rows, text)


def test_embeddings_of_every_token(url: str, expected: Expectations) -> None:
    for rows, text in zip(ask(url, "/embed_all", {"inputs": TEXTS}), TEXTS, strict=True):
        expected.close(rows, np.array(expected.of("token_embeddings", text)))


def test_classes_of_texts_and_pairs(url: str, expected: Expectations) -> None:
    for text in TEXTS:
        expected.classes(ask(url, "/predict", {"inputs": text}), text)
        expected.classes(ask(url, "/predict", {"inputs": [QUERY, text]}), text, "classify_pairs")
    mixed = ask(url, "/predict", {"inputs": [[QUERY, TEXTS[0]], [TEXTS[1]]]})
    expected.classes(mixed[0], TEXTS[0], "classify_pairs")
    expected.classes(mixed[1], TEXTS[1])


def test_raw_scores(url: str, expected: Expectations) -> None:
    ranked = ask(url, "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True})
    logits = expected.rows("rerank")[:, 0]
    expected.close([row["score"] for row in ranked], np.sort(logits)[::-1])
    assert [row["text"] for row in ranked] == [TEXTS[i] for i in np.argsort(-logits)]
    classes = ask(url, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    expected.close([row["score"] for row in classes], np.sort(expected.of("classify", TEXTS[0]))[::-1])


def test_a_reranker_at_its_own_address(url: str, expected: Expectations) -> None:
    expected.ranked(ask(url, "/models/reranker", {"query": QUERY, "texts": TEXTS}))


def test_vertex_takes_what_suits_the_model(url: str, expected: Expectations) -> None:
    instances = [{"inputs": text} for text in TEXTS]
    predictions = ask(url, "/vertex", {"instances": instances})["predictions"]
    expected.embeddings([matrix[0] for matrix in predictions])


def test_tokens(url: str, expected: Expectations) -> None:
    for tokens, text in zip(ask(url, "/tokenize", {"inputs": TEXTS}), TEXTS, strict=True):
        assert [token["id"] for token in tokens] == expected.of("token_ids", text)
        assert all(
            token["text"] == text[token["start"] : token["stop"]] for token in tokens if not token["special"]
        )
    assert ask(url, "/decode", {"ids": expected.of("token_ids", TEXTS[0])}) == [TEXTS[0].lower()]
