"""tritonclient[http], unmodified: health, metadata and inference, as JSON and as binary tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from expectations import QUERY, TEXTS, Expectations
from tritonclient.utils import InferenceServerException

MINILM = "all-MiniLM-L6-v2"
BINARY = pytest.mark.parametrize("binary", [True, False])


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as made:
        yield made


def texts_input(name: str, texts: list[str], binary: bool, kind: Any = triton) -> Any:
    made = kind.InferInput(name, [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array([text.encode() for text in texts], np.object_), binary_data=binary)
    return made


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MINILM)
    assert not client.is_model_ready("nope")


def test_metadata(client: triton.InferenceServerClient) -> None:
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    about = client.get_model_metadata("linear")
    inputs = {given["name"]: (given["datatype"], given["shape"]) for given in about["inputs"]}
    assert inputs == {"x": ("FP32", [-1, 8]), "nonce": ("INT64", [-1])}
    names = [given["name"] for given in client.get_model_metadata("reranker")["inputs"]]
    assert {"input_ids", "text", "text_pair"} <= set(names)


@BINARY
def test_texts_of_an_embedding_model(
    client: triton.InferenceServerClient, expected: Expectations, binary: bool
) -> None:
    wanted = [triton.InferRequestedOutput("embedding", binary_data=binary)]
    answer = client.infer(MINILM, [texts_input("text", TEXTS, binary)], outputs=wanted, request_id="7")
    expected.embeddings(answer.as_numpy("embedding"))
    assert answer.get_response()["id"] == "7"


def test_a_model_without_outputs_named(client: triton.InferenceServerClient, expected: Expectations) -> None:
    expected.embeddings(client.infer(MINILM, [texts_input("text", TEXTS, True)]).as_numpy("embedding"))


@BINARY
def test_pairs_of_a_reranker(
    client: triton.InferenceServerClient, expected: Expectations, binary: bool
) -> None:
    pairs = [texts_input("text", [QUERY] * len(TEXTS), binary), texts_input("text_pair", TEXTS, binary)]
    expected.close(client.infer("reranker", pairs).as_numpy("logits"), expected.rows("rerank"))


@BINARY
def test_numbers_of_a_model_of_the_users_own(client: triton.InferenceServerClient, binary: bool) -> None:
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    nonce = np.array([1, -2, 3, 1 << 40, 5], np.int64)
    inputs = [triton.InferInput("x", x.shape, "FP32"), triton.InferInput("nonce", nonce.shape, "INT64")]
    inputs[0].set_data_from_numpy(x, binary_data=binary)
    inputs[1].set_data_from_numpy(nonce, binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("y", "nonce")]
    answer = client.infer("linear", inputs, outputs=outputs)
    y = answer.as_numpy("y")
    assert (y.shape, y.dtype) == ((5, 4), np.float32)
    np.testing.assert_array_equal(answer.as_numpy("nonce"), nonce)
    # The layer is affine: a sum of rows with weights that add up to 1 maps to the same sum of answers.
    mixed = triton.InferInput("x", [1, 8], "FP32")
    mixed.set_data_from_numpy((2 * x[:1] - x[1:2]), binary_data=binary)
    one = triton.InferInput("nonce", [1], "INT64")
    one.set_data_from_numpy(nonce[:1], binary_data=binary)
    Expectations.close(client.infer("linear", [mixed, one]).as_numpy("y"), 2 * y[:1] - y[1:2])


def test_async(url: str, expected: Expectations) -> None:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            return await client.infer(MINILM, [texts_input("text", TEXTS, True)])

    expected.embeddings(asyncio.run(ask()).as_numpy("embedding"))


def test_errors_are_the_packages_own(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="nope"):
        client.infer("nope", [texts_input("text", TEXTS, True)])
    with pytest.raises(InferenceServerException, match="x"):
        wrong = triton.InferInput("x", [1, 7], "FP32")
        wrong.set_data_from_numpy(np.zeros((1, 7), np.float32))
        client.infer("linear", [wrong])
