"""huggingface_hub's InferenceClient, in the forms people use against their own TEI."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from expectations import QUERY, TEXTS, Expectations
from huggingface_hub import (
    AsyncInferenceClient,
    InferenceClient,
    TextClassificationOutputElement,
    get_session,
)
from huggingface_hub.errors import HfHubHTTPError

TEXT = TEXTS[0]


def test_feature_extraction_by_the_routes_url(url: str, expected: Expectations) -> None:
    expected.embeddings(InferenceClient().feature_extraction(TEXT, model=f"{url}/embed"), [TEXT])


def test_feature_extraction_async(url: str, expected: Expectations) -> None:
    async def ask() -> object:
        async with AsyncInferenceClient(model=url) as client:
            return await client.feature_extraction(TEXT)

    expected.embeddings(asyncio.run(ask()), [TEXT])


@pytest.mark.parametrize("keyword", ["model", "base_url"])
def test_feature_extraction_by_the_services_url(url: str, expected: Expectations, keyword: str) -> None:
    client = InferenceClient(**{keyword: url})
    expected.embeddings(client.feature_extraction(TEXTS), TEXTS)  # type: ignore[arg-type]
    raw = client.feature_extraction(TEXTS, normalize=False)  # type: ignore[arg-type]
    expected.close(raw, expected.rows("raw_embeddings"))


def test_feature_extraction_with_every_option(url: str, expected: Expectations) -> None:
    got = InferenceClient(base_url=url).feature_extraction(
        TEXTS,  # type: ignore[arg-type]
        normalize=True,
        truncate=True,
        truncation_direction="left",
        dimensions=64,
    )
    expected.embeddings(got, TEXTS, dimensions=64)


def test_sentence_similarity(url: str, expected: Expectations) -> None:
    others = TEXTS[1:]
    got = InferenceClient().sentence_similarity(TEXT, other_sentences=others, model=f"{url}/similarity")
    vectors = expected.rows("embeddings")
    expected.close(got, vectors[1:] @ vectors[0])


@pytest.mark.parametrize("path", ["/predict", "/models/classifier"])
def test_text_classification(url: str, expected: Expectations, path: str) -> None:
    """The package takes the hub's nested answer; of TEI's flat one it returns the first element, the most likely class."""
    for text in TEXTS:
        best = InferenceClient().text_classification(text, model=f"{url}{path}")
        assert isinstance(best, TextClassificationOutputElement)
        expected.classes([{"label": best.label, "score": best.score}], text)


def test_a_mistake_is_an_error_that_says_what(url: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        InferenceClient().feature_extraction("word " * 600, truncate=False, model=f"{url}/embed")
    assert error.value.response.status_code == 422
    assert "256" in error.value.response.json()["error"]


def test_reranking_through_the_raw_call(url: str, expected: Expectations) -> None:
    """InferenceClient has no method of its own for it; its HTTP session takes the body as TEI's page shows it."""
    answer = get_session().post(f"{url}/rerank", json={"query": QUERY, "texts": TEXTS})
    expected.ranked(answer.json())
    assert np.all(np.diff([row["score"] for row in answer.json()]) <= 0)
