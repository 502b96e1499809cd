"""langchain-openai's OpenAIEmbeddings, with the setting that a server of another vocabulary needs."""

from __future__ import annotations

import asyncio

from expectations import TEXTS, Expectations
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr


def embedder(url: str) -> OpenAIEmbeddings:
    # With the check left on it sends token ids of OpenAI's vocabulary.
    return OpenAIEmbeddings(
        base_url=f"{url}/v1",
        api_key=SecretStr("-"),
        model="all-MiniLM-L6-v2",
        check_embedding_ctx_length=False,
    )


def test_documents_and_query(url: str, expected: Expectations) -> None:
    client = embedder(url)
    expected.embeddings(client.embed_documents(TEXTS))
    expected.embeddings([client.embed_query(TEXTS[0])], TEXTS[:1])


def test_async(url: str, expected: Expectations) -> None:
    expected.embeddings(asyncio.run(embedder(url).aembed_documents(TEXTS)))
