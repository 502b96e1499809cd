"""Times the engine's own path on one model: wire tensors in, batches on the device, wire tensors out."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import truediv
from typing import Any

import msgspec
import numpy as np
import torch

from gpu_server import specs
from gpu_server.config import Config, ModelConfig
from gpu_server.engine import device as devices
from gpu_server.engine import memory, shapes, verify
from gpu_server.engine.loader import LoadedModel, load
from gpu_server.engine.runner import Pending, Runner
from gpu_server.errors import ConfigError, ModelFailed, OutOfMemory, RemoteError, from_wire
from gpu_server.models.text.graphs import Captured, Staged
from gpu_server.wire import Tensors
from gpu_server.wire.documents import InputInfo, ModelInfo
from gpu_server.wire.tensor import NUMPY_DTYPE, STRING_DTYPES

BUDGETS = (1024, 2048, 4096, 8192, 16_384)
MEDIAN_TOKENS, SIGMA, SHORTEST, LONGEST = 40, 0.8, 3, 512
"""Mixed lengths: lognormal, clipped; as in the figures of docs/performance.md."""
ITEMS = (8, 32, 128, 512, 2048)
"""Sizes of batches where an item's length is not ours to choose."""
SINGLE_TOKENS = 16
LATENCY_RUNS = 500
REPLAYS = 20
SECONDS = 1.0
ROUNDS = 5
"""Batches and bare replays take turns: a GPU's clock moves in a second by more than they differ."""

Progress = Callable[[str, float], None]


class Row(msgspec.Struct):
    """One batch size: tokens per second through the engine, and the part of the matmul ceiling that its sums are.

    tokens: what its items cost, where they are no texts. ceiling_share: None where nobody counts a model's sums.
    bare_us: the batch's graph replayed again and again, with nothing around it. loop_share: that over `batch_us`. Both None
    without graphs.
    """

    tokens: int
    items: int
    batch_us: float
    tokens_per_s: float
    ceiling_share: float | None
    bare_us: float | None
    loop_share: float | None


class Report(msgspec.Struct):
    """What `gpu-server bench forward` found. Times in microseconds unless named otherwise.

    texts: whether its items are texts. ceiling_dtype: of the products of `ceiling_tflops`, the model's own if it tells.
    load_s: from nothing to ready to serve. kernels_s, capture_s: of that, loading the kernels of the graphs (on a first
    start, building them and compiling layers) and capturing. capture_mib: of device memory, the graphs. Those three are None
    without graphs, memory_mib on a CPU. single_tokens: of the text whose times follow; of no text, what the item costs.
    """

    model: str
    device: str
    torch: str
    dtype: str
    runs: str
    texts: bool
    ceiling_dtype: str
    ceiling_tflops: float
    load_s: float
    kernels_s: float | None
    capture_s: float | None
    capture_mib: float | None
    memory_mib: float | None
    single_tokens: int
    single_p50_us: float
    single_p99_us: float
    rows: list[Row]


def run(settings: Config, shape: str, progress: Progress) -> Report:
    """Load the first model, or random weights of a named shape, and time it; `progress` gets what is done and its part.

    Raises ConfigError on a class of which nobody knows what it takes, RemoteError where it fails on what it declares, and
    OutOfMemory where the device has no room for the products of the ceiling.
    """
    model, engine = settings.models[0] if settings.models else ModelConfig(), settings.engine
    device = devices.choose(engine.device)
    devices.prepare(device, engine.threads)
    memory.bound(device, engine.max_memory_mb)
    with shapes.folder(shape) as made:
        model = model if made is None else replace(model, source=str(made), name=shape)
        devices.use_own_stream(device, [model.source])
        spec = specs.of_model(model)
        started = time.perf_counter()
        loaded = load(
            spec,
            specs.of_engine(settings, (spec,)),
            device,
            lambda phase, done: progress(phase, 0.1 + 0.5 * done),
        )
        load_s = time.perf_counter() - started
    sizes = _sizes(loaded)
    _try(loaded)
    reserved = torch.cuda.memory_reserved(device) if device.type == "cuda" else None
    progress("matmul ceiling", 0.6)
    dtype = _products(loaded.info, device)
    ceiling = matmul_ceiling(device, dtype)
    progress("one item", 0.6)
    single = _latencies(loaded)
    captured = getattr(loaded.model, "captured", None)
    captured = captured if isinstance(captured, Captured) else None
    report = Report(
        model=shape or loaded.info.source,
        device=devices.describe(device),
        torch=str(torch.__version__),
        dtype=loaded.info.dtype,
        runs=loaded.info.runs,
        texts=loaded.info.text is not None,
        ceiling_dtype=str(dtype).removeprefix("torch."),
        ceiling_tflops=ceiling / 1e12,
        load_s=load_s,
        kernels_s=captured.kernels if captured else None,
        capture_s=captured.seconds if captured else None,
        capture_mib=captured.memory / 2**20 if captured else None,
        memory_mib=None if reserved is None else reserved / 2**20,
        single_tokens=_single(loaded),
        single_p50_us=statistics.median(single) * 1e6,
        single_p99_us=sorted(single)[int(len(single) * 0.99)] * 1e6,
        rows=[],
    )
    for number, lengths in enumerate(sizes):
        progress(f"batches of {len(lengths)} items", 0.65 + 0.35 * number / len(sizes))
        report.rows.append(_throughput(loaded, lengths, engine.batches_in_flight, ceiling))
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
    """Floating-point operations per second of a large matrix product on random data, sustained. Raises OutOfMemory."""
    size = 8192 if device.type == "cuda" else 1024
    try:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            a @ b
    except torch.OutOfMemoryError:
        mib = 4 * size * size * dtype.itemsize >> 20
        raise OutOfMemory(f"no room beside the model for the products of the ceiling, {mib} MiB") from None
    _synchronize(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS / 2 or not count:
        a @ b
        _synchronize(device)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def _products(info: ModelInfo, device: torch.device) -> torch.dtype:
    """The number type that a model multiplies in, or what is usual on the device where it does not tell."""
    if "bfloat16 products" in info.runs:
        return torch.bfloat16
    known = {
        str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    return known.get(info.dtype, torch.float16 if device.type == "cuda" else torch.float32)


def _throughput(loaded: LoadedModel, lengths: list[int], in_flight: int, ceiling: float) -> Row:
    budget = sum(lengths)
    inputs = made_inputs(loaded, lengths)
    for _ in range(5):
        _end(loaded.runner.enqueue(inputs, {}))
    graphed = getattr(loaded.model.collate(inputs, loaded.runner.device), "packed", None)
    replay = graphed.bucket.replay if isinstance(graphed, Staged) else None
    count = 1 if replay is None else ROUNDS
    batches, replays = [], []
    for _ in range(count):
        batches.append(timed_batches(loaded.runner, inputs, in_flight, SECONDS / count))
        if replay is not None:
            replays.append(_timed_replays(replay))
    batch = statistics.median(batches)
    sums = shapes.operations(loaded.model, lengths) if loaded.info.text else 0.0
    return Row(
        tokens=budget,
        items=len(lengths),
        batch_us=batch * 1e6,
        tokens_per_s=budget / batch,
        ceiling_share=sums / batch / ceiling if sums else None,
        bare_us=statistics.median(replays) * 1e6 if replays else None,
        loop_share=statistics.median(map(truediv, replays, batches)) if replays else None,
    )


def _timed_replays(replay: Callable[[], object]) -> float:
    """Seconds of one replay of a batch's graph behind others."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started, count, milliseconds = time.perf_counter(), 0, 0.0
    while time.perf_counter() - started < SECONDS / 2 / ROUNDS or not count:
        # One ahead, so that the device never waits for the first to be launched.
        replay()
        first.record()
        for _ in range(REPLAYS):
            replay()
        last.record()
        last.synchronize()
        milliseconds += first.elapsed_time(last)
        count += REPLAYS
    return milliseconds / 1e3 / count


def timed_batches(runner: Runner, inputs: Tensors, in_flight: int, least: float) -> float:
    """Seconds from an answer to the next with `in_flight` batches under way, as in service; it takes `least` seconds.

    Raises RemoteError if one fails.
    """
    pending = deque(runner.enqueue(inputs, {}) for _ in range(in_flight))
    _end(pending.popleft())
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < least or count < 3:
        pending.append(runner.enqueue(inputs, {}))
        _end(pending.popleft())
        count += 1
    seconds = (time.perf_counter() - started) / count
    for batch in pending:
        _end(batch)
    return seconds


def _end(batch: Pending) -> None:
    """Wait for a batch. Raises RemoteError if one of its items failed, or it ran in parts: that is no figure."""
    _, errors = batch.wait()
    if errors:
        raise from_wire(errors[0].code, errors[0].message)
    if batch.fitting:
        raise OutOfMemory(
            f"the device has not enough memory for a batch; one that costs {batch.fitting} may fit"
        )
    if batch.raised:
        raise ModelFailed(f"a batch fails, its parts do not: {batch.raised}")


def _latencies(loaded: LoadedModel) -> list[float]:
    inputs = made_inputs(loaded, [_single(loaded)])
    begun = time.perf_counter()
    # An idle GPU has a low clock and takes a while to raise it.
    while time.perf_counter() - begun < SECONDS / 2:
        _end(loaded.runner.enqueue(inputs, {}))
    seconds = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        _end(loaded.runner.enqueue(inputs, {}))
        seconds.append(time.perf_counter() - started)
    return seconds


def _try(loaded: LoadedModel) -> None:
    """Run one item, so that a model that fails on what it is sent here says so once."""
    try:
        _end(loaded.runner.enqueue(made_inputs(loaded, [_single(loaded)]), {}))
    except RemoteError as error:
        sent = "its example" if _example(loaded) else "made-up inputs of its declared types and shapes"
        advice = "" if loaded.info.text or _example(loaded) else "; give the class an example()"
        why = loaded.runner.raised or error.message
        raise from_wire(error.code, f"{loaded.info.source} fails on {sent}: {why}{advice}") from None


def _example(loaded: LoadedModel) -> Mapping[str, Any] | None:
    """One item, of a class that has one; a text model is sent texts of known lengths instead."""
    example = loaded.model.example() if loaded.info.text is None else None
    return example if isinstance(example, Mapping) else None


def _fixed_cost(loaded: LoadedModel) -> int | None:
    """What each item costs; None where its length is ours to choose. Raises ConfigError where nothing is known of items."""
    info, example = loaded.info, _example(loaded)
    if not info.inputs and example is None:
        raise ConfigError(
            f"{info.source}: bench forward does not know what to send it: give the class inputs or an example()"
        )
    if info.text is not None:
        return None
    if isinstance(info.cost, int):
        return info.cost
    return len(example[info.cost]) if example is not None else None


def _single(loaded: LoadedModel) -> int:
    cost, text = _fixed_cost(loaded), loaded.info.text
    return cost if cost is not None else min(SINGLE_TOKENS, text.max_length if text else SINGLE_TOKENS)


def _sizes(loaded: LoadedModel) -> list[list[int]]:
    """The batches to time, each as what its items cost."""
    info, cost = loaded.info, _fixed_cost(loaded)
    if cost is None:
        longest = info.text.max_length if info.text else LONGEST
        return [mixed_lengths(budget, longest) for budget in BUDGETS if budget <= info.max_batch_tokens]
    most = max(1, min(info.max_batch_items, info.max_batch_tokens // max(1, cost)))
    return [[cost] * items for items in sorted({min(items, most) for items in ITEMS})]


def made_inputs(loaded: LoadedModel, lengths: list[int]) -> Tensors:
    """A batch of items of these lengths: random token ids, a class's own example again and again, or what it declares."""
    info, example = loaded.info, _example(loaded)
    if example is not None:
        return verify.requested(info, {name: [value] * len(lengths) for name, value in example.items()})
    if isinstance(info.cost, int) and info.text is None:
        lengths = [SINGLE_TOKENS] * len(lengths)
    rng = np.random.default_rng(0)
    given = {declared.name: _made_up(declared, lengths, rng) for declared in info.inputs}
    if info.text is not None:
        # Of the types of its tokens, 0 is the one that every model has.
        size = info.text.vocab_size
        given["input_ids"] = [rng.integers(size // 10, size, n, dtype=np.int32) for n in lengths]
    return verify.requested(info, given)


def _made_up(declared: InputInfo, lengths: list[int], rng: np.random.Generator) -> list[Any]:
    """Legal values, one an item: random floats, and integers of 0, which may be an index into anything."""
    if declared.dtype in STRING_DTYPES:
        return ["text" if declared.dtype == "utf8" else b"text"] * len(lengths)
    shapes_of = [(n, *declared.shape[1:]) if declared.shape[:1] == (-1,) else declared.shape for n in lengths]
    if declared.dtype in ("f16", "bf16", "f32", "f64"):
        return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes_of]
    return [np.zeros(shape, NUMPY_DTYPE[declared.dtype]) for shape in shapes_of]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
