"""The openai package: every form of input and encoding, the list of models, and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from expectations import TEXTS, Expectations

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as made:
        yield made


def vectors(answer: openai.types.CreateEmbeddingResponse) -> list[list[float]]:
    assert [row.index for row in answer.data] == list(range(len(answer.data)))
    return [row.embedding for row in answer.data]


@pytest.mark.parametrize(
    "options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"user": "u"}]
)
def test_texts(client: openai.OpenAI, expected: Expectations, options: dict[str, str]) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS, **options)  # type: ignore[arg-type]
    if options.get("encoding_format") == "base64":
        assert all(isinstance(row.embedding, str) for row in answer.data)
        return
    expected.embeddings(vectors(answer))
    assert answer.model == MODEL
    assert answer.usage.prompt_tokens == sum(len(expected.of("token_ids", text)) for text in TEXTS)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_one_text(client: openai.OpenAI, expected: Expectations) -> None:
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS[0])
    expected.embeddings(vectors(answer), TEXTS[:1])


def test_token_ids(client: openai.OpenAI, expected: Expectations) -> None:
    ids = [expected.of("token_ids", text) for text in TEXTS]
    expected.embeddings(vectors(client.embeddings.create(model=MODEL, input=ids)))
    expected.embeddings(vectors(client.embeddings.create(model=MODEL, input=ids[0])), TEXTS[:1])


def test_dimensions(client: openai.OpenAI, expected: Expectations) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=100)
    expected.embeddings(vectors(answer), dimensions=100)


def test_async(url: str, expected: Expectations) -> None:
    async def ask() -> openai.types.CreateEmbeddingResponse:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client:
            return await client.embeddings.create(model=MODEL, input=TEXTS)

    expected.embeddings(vectors(asyncio.run(ask())))


def test_models(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == [MODEL, "classifier", "reranker", "sparse", "tagger", "linear", "Classifier"]
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.embeddings.create(model="nope", input="a")
    with pytest.raises(openai.BadRequestError, match="input"):
        client.embeddings.create(model=MODEL, input="")
    with pytest.raises(openai.APIStatusError, match="dimensions"):
        client.embeddings.create(model=MODEL, input="a", dimensions=100_000)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
