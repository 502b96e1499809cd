"""Times the engine's own path on one model: wire tensors in, batches on the device, wire tensors out."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch

from gpu_server import config
from gpu_server.engine import device as devices
from gpu_server.engine import shapes
from gpu_server.engine.loader import LoadedModel, load
from gpu_server.engine.runner import Runner
from gpu_server.models.text.graphs import Staged
from gpu_server.wire.events import EngineSpec, ModelSpec
from gpu_server.wire.tensor import Tensor

BUDGETS = (1024, 2048, 4096, 8192, 16_384)
MEDIAN_TOKENS, SIGMA, SHORTEST, LONGEST = 40, 0.8, 3, 512
"""Mixed lengths: lognormal, clipped; as in the figures of docs/performance.md."""
SINGLE_TOKENS = 16
LATENCY_RUNS = 500
REPLAYS = 20
SECONDS = 1.0

Progress = Callable[[str, float], None]


class Row(msgspec.Struct):
    """One batch size: tokens per second through the engine, and the part of the matmul ceiling that its sums are.

    bare_us: the batch's graph replayed again and again, with nothing around it; 0 without graphs. loop_share: that over
    `batch_us`.
    """

    tokens: int
    items: int
    batch_us: float
    tokens_per_s: float
    ceiling_share: float
    bare_us: float
    loop_share: float


class Report(msgspec.Struct):
    """What `gpu-server bench forward` found. Times in microseconds unless named otherwise.

    load_s: from nothing to ready to serve. capture_s, capture_mib: what capturing the graphs took of that, and of device
    memory; 0 without graphs.
    """

    model: str
    device: str
    torch: str
    dtype: str
    runs: str
    ceiling_tflops: float
    load_s: float
    capture_s: float
    capture_mib: float
    memory_mib: float
    single_p50_us: float
    single_p99_us: float
    rows: list[Row]


def run(source: str, shape: str, settings: config.EngineConfig, progress: Progress) -> Report:
    """Load `source`, or random weights of a named shape, and time it; `progress` gets what is done now and its part."""
    device = devices.choose(settings.device)
    devices.prepare(device, settings.threads)
    progress("matmul ceiling", 0.0)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    ceiling = matmul_ceiling(device, dtype)
    with shapes.folder(shape) as made:
        spec = _spec(str(made) if made is not None else source, settings)
        started = time.perf_counter()
        loaded = load(spec.models[0], spec, device, lambda phase, done: progress(phase, 0.1 + 0.5 * done))
        load_s = time.perf_counter() - started
    progress("one text", 0.6)
    single = _latencies(loaded, SINGLE_TOKENS)
    captured = getattr(loaded.model, "captured", None)
    report = Report(
        model=shape or loaded.info.source,
        device=devices.describe(device),
        torch=str(torch.__version__),
        dtype=loaded.info.dtype,
        runs=loaded.info.runs,
        ceiling_tflops=ceiling / 1e12,
        load_s=load_s,
        capture_s=captured.seconds if captured else 0.0,
        capture_mib=captured.memory / 2**20 if captured else 0.0,
        memory_mib=torch.cuda.memory_reserved(device) / 2**20 if device.type == "cuda" else 0.0,
        single_p50_us=statistics.median(single) * 1e6,
        single_p99_us=sorted(single)[int(len(single) * 0.99)] * 1e6,
        rows=[],
    )
    budgets = [b for b in BUDGETS if b <= loaded.info.max_batch_tokens]
    for number, budget in enumerate(budgets):
        progress(f"batches of {budget} tokens", 0.65 + 0.35 * number / len(budgets))
        report.rows.append(_throughput(loaded, budget, settings.batches_in_flight, ceiling))
    return report


def mixed_lengths(tokens: int, longest: int, seed: int = 7) -> list[int]:
    """Lengths that sum to exactly `tokens`."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    left = tokens
    while left:
        drawn = round(float(rng.lognormal(np.log(MEDIAN_TOKENS), SIGMA)))
        lengths.append(min(max(drawn, SHORTEST), LONGEST, longest, left))
        left -= lengths[-1]
    return lengths


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product on random data, sustained."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _synchronize(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS / 2:
        a @ b
        _synchronize(device)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def _throughput(loaded: LoadedModel, budget: int, in_flight: int, ceiling: float) -> Row:
    info = loaded.info
    lengths = mixed_lengths(budget, info.text.max_length if info.text else LONGEST)
    inputs = _inputs(loaded, lengths)
    batches = _timed_batches(loaded.runner, inputs, in_flight)
    bare = _timed_replays(loaded, inputs)
    return Row(
        tokens=budget,
        items=len(lengths),
        batch_us=batches * 1e6,
        tokens_per_s=budget / batches,
        ceiling_share=shapes.operations(loaded.model, lengths) / batches / ceiling,
        bare_us=bare * 1e6,
        loop_share=bare / batches,
    )


def _timed_replays(loaded: LoadedModel, inputs: dict[str, Tensor]) -> float:
    """Seconds of one replay of the graph that such a batch runs in; 0 where it runs without one."""
    staged = getattr(loaded.model.collate(inputs, loaded.runner.device), "packed", None)
    if not isinstance(staged, Staged):
        return 0.0
    staged.bucket.replay()
    torch.cuda.synchronize()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS / 2:
        for _ in range(REPLAYS):
            staged.bucket.replay()
        torch.cuda.synchronize()
        count += REPLAYS
    return (time.perf_counter() - started) / count


def _timed_batches(runner: Runner, inputs: dict[str, Tensor], in_flight: int) -> float:
    """Seconds a batch takes with `in_flight` of them started before the first is waited for, as in service."""
    pending: deque[Any] = deque()
    for _ in range(5):
        runner.run(inputs)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS or count < 5:
        pending.append(runner.enqueue(inputs, {}))
        if len(pending) >= in_flight:
            pending.popleft().wait()
            count += 1
    while pending:
        pending.popleft().wait()
        count += 1
    return (time.perf_counter() - started) / count


def _latencies(loaded: LoadedModel, tokens: int) -> list[float]:
    inputs = _inputs(loaded, [tokens])
    begun = time.perf_counter()
    # An idle GPU has a low clock and takes a while to raise it.
    while time.perf_counter() - begun < SECONDS / 2:
        loaded.runner.run(inputs)
    seconds = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        loaded.runner.run(inputs)
        seconds.append(time.perf_counter() - started)
    return seconds


def _inputs(loaded: LoadedModel, lengths: list[int]) -> dict[str, Tensor]:
    vocabulary = loaded.info.text.vocab_size if loaded.info.text else 2
    rng = np.random.default_rng(0)
    rows = [rng.integers(vocabulary // 10, vocabulary, n, dtype=np.int32) for n in lengths]
    return {"input_ids": Tensor.from_rows(rows)}


def _spec(source: str, settings: config.EngineConfig) -> EngineSpec:
    return EngineSpec(
        device=settings.device,
        threads=settings.threads,
        max_memory_mb=settings.max_memory_mb,
        max_batch_tokens=settings.max_batch_tokens,
        max_batch_items=settings.max_batch_items,
        batches_in_flight=settings.batches_in_flight,
        max_batch_bytes=0,
        graphs=settings.graphs,
        fused=settings.fused,
        compiled=settings.compile,
        log_level="warning",
        log_format="text",
        models=(ModelSpec(name="bench", source=source),),
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
