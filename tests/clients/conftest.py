"""One daemon with a model of each kind behind Gunicorn, for real client packages, which are only in .venv-clients."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from expectations import QUERY, TEXTS, Expectations
from running_daemon import PYTHON, ROOT, RunningDaemon
from running_gunicorn import RunningGunicorn

collect_ignore_glob = [] if find_spec("tritonclient") else ["test_*.py"]

# A model of one label can be asked to classify too, so the classifier stands first.
# Plain float32: left to itself the engine may round products on a CPU, and answers would differ from the references.
MODELS = """
[[models]]
dtype = "float32"
[[models]]
name = "classifier"
source = "{folder}/classifier"
dtype = "float32"
[[models]]
name = "reranker"
source = "{folder}/reranker"
dtype = "float32"
[[models]]
name = "sparse"
source = "{folder}/sparse"
dtype = "float32"
[[models]]
name = "tagger"
source = "{folder}/tagger"
dtype = "float32"
[[models]]
name = "linear"
source = "linear:Linear"
[[models]]
source = "classifier:Classifier"
"""
OF_ONES_OWN = (
    ROOT / "tests" / "e2e" / "models" / "linear.py",
    ROOT / "examples" / "custom_model" / "classifier.py",
)


@pytest.fixture(scope="session")
def checkpoints() -> Iterator[Path]:
    """Tiny models, and what their own libraries make of the texts."""
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        script = Path(__file__).with_name("references.py")
        given = json.dumps({"texts": TEXTS, "query": QUERY})
        done = subprocess.run(
            [PYTHON, script, folder], input=given, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        yield Path(folder)


@pytest.fixture(scope="session")
def expected(checkpoints: Path) -> Expectations:
    """What the models' own libraries answer."""
    return Expectations(json.loads((checkpoints / "expected.json").read_text()))


@pytest.fixture(scope="session")
def daemon_endpoint(checkpoints: Path) -> Iterator[str]:
    """Where the daemon serves."""
    settings = checkpoints / "models.toml"
    settings.write_text(MODELS.format(folder=checkpoints))
    for source in OF_ONES_OWN:
        shutil.copy(source, checkpoints)
    daemon = RunningDaemon(f"ipc://{checkpoints}/s", "--config", str(settings), folder=checkpoints)
    try:
        yield daemon.wait_ready().endpoint
    finally:
        daemon.kill()


@pytest.fixture(scope="session")
def web(daemon_endpoint: str) -> Iterator[RunningGunicorn]:
    """Two workers in front of the daemon."""
    with RunningGunicorn(daemon_endpoint, workers=2) as running:
        yield running


@pytest.fixture
def url(web: RunningGunicorn) -> str:
    """Where it serves, without a slash at the end."""
    return web.url
