"""Cohere's package: reranking in both versions of its API."""

from __future__ import annotations

import asyncio
from typing import Any

import cohere
import pytest
from expectations import QUERY, TEXTS, Expectations


def rows(answer: Any) -> list[dict[str, Any]]:
    return [{"index": row.index, "score": row.relevance_score} for row in answer.results]


@pytest.mark.parametrize("kind", [cohere.Client, cohere.ClientV2])
def test_rerank(url: str, expected: Expectations, kind: type[Any]) -> None:
    client = kind(base_url=url, api_key="-")
    answer = client.rerank(model="reranker", query=QUERY, documents=TEXTS)
    expected.ranked(rows(answer))
    assert answer.id
    expected.ranked(rows(client.rerank(model="reranker", query=QUERY, documents=TEXTS, top_n=2)))


def test_rerank_async(url: str, expected: Expectations) -> None:
    async def ask() -> Any:
        async with cohere.AsyncClientV2(base_url=url, api_key="-") as client:
            return await client.rerank(model="reranker", query=QUERY, documents=TEXTS, top_n=3)

    expected.ranked(rows(asyncio.run(ask())))


def test_documents_of_the_first_version_come_back(url: str, expected: Expectations) -> None:
    client = cohere.Client(base_url=url, api_key="-")
    documents = [{"text": text} for text in TEXTS]
    answer = client.rerank(model="reranker", query=QUERY, documents=documents, return_documents=True)
    expected.ranked(rows(answer))
    assert [row.document.text for row in answer.results if row.document] == [
        TEXTS[r.index] for r in answer.results
    ]


def test_errors_are_the_packages_own(url: str) -> None:
    client = cohere.ClientV2(base_url=url, api_key="-")
    with pytest.raises(cohere.NotFoundError):
        client.rerank(model="nope", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.BadRequestError):
        client.rerank(model="reranker", query=QUERY, documents=[])
