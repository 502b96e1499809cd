"""llama-index's TEI packages: the embedding and the reranking postprocessor."""

from __future__ import annotations

import asyncio

import pytest
from expectations import QUERY, TEXTS, Expectations
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

# Instructions that would be put before each text are left out, so that vectors are those of the texts.
PLAIN = {"query_instruction": "", "text_instruction": ""}


@pytest.mark.parametrize("token", [None, "secret"])
def test_embedding(url: str, expected: Expectations, token: str | None) -> None:
    client = TextEmbeddingsInference(model_name="all-MiniLM-L6-v2", base_url=url, auth_token=token, **PLAIN)
    expected.embeddings(client.get_text_embedding_batch(TEXTS))
    expected.embeddings([client.get_query_embedding(TEXTS[0])], TEXTS[:1])


def test_embedding_async(url: str, expected: Expectations) -> None:
    client = TextEmbeddingsInference(model_name="all-MiniLM-L6-v2", base_url=url, **PLAIN)
    expected.embeddings(asyncio.run(client.aget_text_embedding_batch(TEXTS)))


def test_rerank(url: str, expected: Expectations) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    best = TextEmbeddingInference(base_url=url, top_n=3, auth_token="secret").postprocess_nodes(
        nodes, query_bundle=QueryBundle(QUERY)
    )
    expected.ranked([{"index": TEXTS.index(node.text), "score": node.score} for node in best])
    assert len(best) == 3
