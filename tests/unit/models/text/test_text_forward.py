"""How graphs are captured and checked, with a recorder in the place of CUDA."""

from __future__ import annotations

import itertools
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_server.errors import DeviceLost, EngineStartFailed, GPUServerError, OutOfMemory
from gpu_server.models.text import attention, encoder, graphs
from gpu_server.models.text.attention import Rule
from gpu_server.models.text.forward import Forward
from gpu_server.models.text.pooling import pool_and_normalize

CPU = torch.device("cpu")
MAX_TOKENS = 100
MakeModel = Callable[..., Path]
Wrong = Callable[[int], bool]


class Recorder:
    """Stands in for CUDA graphs: a replay runs the forward that was recorded, and adds 1 where `wrong(tokens)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrong: Wrong = lambda tokens: False
        self.captured: list[int] = []

        def capture(bucket: Any, forward: Any, pool: object) -> None:
            self.captured.append(bucket.tokens)
            bucket.outputs = bucket.run(forward)
            bucket.recorded = forward

        def replay(bucket: Any) -> graphs.Outputs:
            shift = 1 if self.wrong(bucket.tokens) else 0
            hidden, pooled, _ = bucket.run(bucket.recorded)
            return graphs.Outputs(hidden, [output + shift for output in pooled])

        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(graphs, "_free_memory", lambda: 0)
        monkeypatch.setattr(graphs, "_capturing_stream", nullcontext)
        monkeypatch.setattr(graphs, "_as_if_capturing", nullcontext)
        for name, function in {"spread": spread, "land": land}.items():
            kernel = types.ModuleType(f"gpu_server.models.text.{name.replace('land', 'landing')}_kernel")
            setattr(kernel, name, function)
            monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
        monkeypatch.setattr(graphs.Bucket, "capture", capture)
        monkeypatch.setattr(graphs.Bucket, "replay", replay)
        monkeypatch.setattr(attention, "_tiled", masked)


def spread(given: graphs.Given, inputs: graphs.Inputs, first_position: int) -> None:
    """What the kernel computes; outside the batch, padding."""
    inputs.ids.copy_(given.ids)
    inputs.offsets.copy_(given.offsets)
    inputs.ids[inputs.offsets[-1] :] = 0
    if inputs.types is not None and given.types is not None:
        inputs.types.copy_(given.types)
        inputs.types[inputs.offsets[-1] :] = 0
    for section, fill in (
        (inputs.positions, first_position),
        (inputs.bounds[0], inputs.offsets[-1]),
        (inputs.bounds[1], 0),
    ):
        section[:] = fill
    for start, end in itertools.pairwise(inputs.offsets.tolist()):
        inputs.positions[start:end] = torch.arange(end - start) + first_position
        inputs.bounds[0][start:end], inputs.bounds[1][start:end] = start, end


def land(rows: torch.Tensor, offsets: torch.Tensor, landing: torch.Tensor) -> None:
    """What the kernel copies."""
    landing[offsets.diff() > 0] = rows[offsets.diff() > 0]


def masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: tuple[torch.Tensor, torch.Tensor], rule: Rule
) -> torch.Tensor:
    """What the token-tiled kernel computes; a token that sees nothing gets zeros."""
    place = torch.arange(len(q))
    seen = (place >= bounds[0][:, None]) & (place < bounds[1][:, None])
    scores = torch.einsum("qhd,khd->hqk", q, k) * rule.scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def forward_of(folder: Path, lands: int | None = None) -> Forward:
    loaded = encoder.load(folder, CPU)
    loaded.use("packed")
    return Forward(loaded, lambda hidden, offsets: pool_and_normalize(hidden, offsets, "mean"), lands=lands)


def capture(
    forward: Forward, *, max_items: int = 50, max_tokens: int = MAX_TOKENS, compiled: bool = False
) -> None:
    forward.capture(
        max_tokens=max_tokens,
        max_items=max_items,
        max_length=40,
        compiled=compiled,
        fused=False,
        progress=lambda done: None,
    )


def embed(forward: Forward, *lengths: int) -> torch.Tensor:
    ids = np.random.default_rng(0).integers(4, 96, sum(lengths), dtype=np.int32)
    with torch.inference_mode():
        return forward(forward.pack(ids, np.array(lengths))).pooled[0].clone()


@pytest.mark.parametrize(("max_tokens", "max_items"), [(100, 50), (100, 1), (100, 2), (1000, 3), (3, 2)])
def test_graphs_of_any_limits_are_captured_and_right(
    make_model: MakeModel, recorder: Recorder, max_tokens: int, max_items: int
) -> None:
    forward = forward_of(make_model("bert"))
    direct = embed(forward, 3)
    capture(forward, max_tokens=max_tokens, max_items=max_items)
    assert forward.runs == "graphs"
    assert forward.graph_sizes == tuple(graphs.ladder(max_tokens))
    assert recorder.captured == [n for n in graphs.ladder(max_tokens)[::-1] for _ in range(graphs.TURNS)]
    torch.testing.assert_close(embed(forward, 3), direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch, collects: bool) -> None:
    for name in ("synchronize", "Stream", "current_stream", "default_stream", "current_blas_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(graphs.gc, "isenabled", lambda: collects)
    done: list[str] = []
    for name in ("collect", "disable", "enable"):
        monkeypatch.setattr(graphs.gc, name, partial(done.append, name))
    with pytest.raises(RuntimeError, match="fails"), graphs._capturing_stream():
        assert done == ["collect", "disable"]
        raise RuntimeError("it fails")
    assert done == ["collect", "disable", *(["enable"] if collects else [])]


def test_a_look_at_what_waits_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = [1]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", asked := lambda: False)
    with pytest.raises(RuntimeError, match="waits"), graphs._as_if_capturing():
        assert modes[-1] == "error"
        assert torch.cuda.is_current_stream_capturing()
        raise RuntimeError("it waits")
    assert modes == [1, "error", 1]
    assert torch.cuda.is_current_stream_capturing is asked


def test_a_model_that_waits_for_the_device_runs_without_graphs(
    make_model: MakeModel,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    as_captured = False

    @contextmanager
    def as_if_capturing() -> Iterator[None]:
        nonlocal as_captured
        as_captured = True
        try:
            yield
        finally:
            as_captured = False

    def waits(module: object, args: object) -> None:
        if as_captured:
            raise RuntimeError("called a synchronizing CUDA operation\nat length")

    monkeypatch.setattr(graphs, "_as_if_capturing", as_if_capturing)
    forward = forward_of(make_model("bert"))
    forward.encoder.model.encoder.register_forward_pre_hook(waits)
    with caplog.at_level("INFO"):
        capture(forward)
    assert (forward.runs, forward.graph_sizes, recorder.captured) == ("packed", (), [])
    reasons = [record.reason for record in caplog.records if record.message == "runs without graphs"]
    assert reasons == ["no graph can hold the model: called a synchronizing CUDA operation"]


@pytest.mark.parametrize("bucket", graphs.ladder(MAX_TOKENS))
def test_one_wrong_bucket_fails_the_start(make_model: MakeModel, recorder: Recorder, bucket: int) -> None:
    recorder.wrong = lambda tokens: tokens == bucket
    with pytest.raises(EngineStartFailed, match="the graphs give other numbers; start with --no-graphs"):
        capture(forward_of(make_model("bert")))


def test_a_batch_staged_while_another_runs_leaves_it_alone(make_model: MakeModel, recorder: Recorder) -> None:
    forward = forward_of(make_model("bert"))
    capture(forward)
    rows = [np.random.default_rng(seed).integers(4, 96, 9, dtype=np.int32) for seed in range(2)]
    with torch.inference_mode():
        alone = [forward(forward.pack(ids, np.array([9]))).pooled[0].clone() for ids in rows]
        first, second = (forward.pack(ids, np.array([9])) for ids in rows)
        torch.testing.assert_close(forward(first).pooled[0], alone[0])
        torch.testing.assert_close(forward(second).pooled[0], alone[1])


@torch.inference_mode()
def test_what_lands_outlives_the_batches_after_it(make_model: MakeModel, recorder: Recorder) -> None:
    forward = forward_of(make_model("bert"), lands=1)
    capture(forward)
    rows = np.random.default_rng(0).integers(4, 96, (7, 5), dtype=np.int32)
    ran = [forward(forward.pack(ids, np.array([3, 2]))) for ids in rows]
    for ids, outputs in zip(rows, ran, strict=True):
        assert outputs.landed is not None
        outputs.landed.take()
        want = forward(forward.pack(ids, np.array([3, 2]))).pooled[1]
        assert np.array_equal(outputs.landed.rows, want.numpy())


def test_large_batches_do_not_land(recorder: Recorder) -> None:
    for tokens, lands in ((graphs.LANDING_TOKENS, True), (graphs.LANDING_TOKENS + 1, False)):
        bucket = graphs.Bucket(tokens, 5, CPU, 0, False, graphs.Landing(0, 8))
        assert (bucket.landed(2) is not None) == lands


@pytest.fixture
def compiled_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand in for torch.compile; gets the tokens of every run of a compiled layer."""
    runs: list[int] = []

    def compiling(layer: Callable[..., Any], dynamic: bool, **_: Any) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if not dynamic:
                runs.append(args[0].shape[1])
            return layer(*args, **options)

        return run

    monkeypatch.setattr(torch, "compile", compiling)
    return runs


def test_compiled_layers_run_inside_graphs_only(
    make_model: MakeModel, recorder: Recorder, compiled_runs: list[int]
) -> None:
    forward = forward_of(make_model("bert"))
    capture(forward, compiled=True)
    assert forward.runs == "compiled graphs"
    assert set(compiled_runs) == set(graphs.ladder(MAX_TOKENS))
    compiled_runs.clear()
    assert embed(forward, 40, 40, 40).shape == (3, 32)
    assert compiled_runs == []


def test_a_capture_that_fails_leaves_no_compiled_layers(
    make_model: MakeModel, recorder: Recorder, compiled_runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(graphs.Bucket, "capture", fail)
    forward = forward_of(make_model("bert"))
    with pytest.raises(EngineStartFailed, match="capturing the forward failed: no; start with --no-graphs"):
        capture(forward, compiled=True)
    compiled_runs.clear()
    embed(forward, 5)
    assert compiled_runs == []


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), FileNotFoundError("gcc")])
def test_layers_that_do_not_compile_run_as_they_are(
    make_model: MakeModel,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def compiling(layer: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(*_: Any, **__: Any) -> Any:
            assert recorder.captured == []
            raise error

        return run

    monkeypatch.setattr(torch, "compile", compiling)
    forward = forward_of(make_model("bert"))
    with caplog.at_level(logging.WARNING):
        capture(forward, compiled=True)
    assert forward.runs == "graphs"
    assert len(recorder.captured) == graphs.TURNS * len(graphs.ladder(MAX_TOKENS))
    assert "--no-compile" in caplog.text
    assert embed(forward, 5).shape == (1, 32)


@pytest.mark.parametrize(
    ("error", "told", "reason"),
    [
        (torch.OutOfMemoryError("out of memory\nand more"), OutOfMemory, "lower max_batch_tokens"),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceLost, "illegal memory access"),
        (
            torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
            EngineStartFailed,
            "start with --no-graphs",
        ),
    ],
)
def test_what_a_failed_capture_is_called(
    make_model: MakeModel,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: type[GPUServerError],
    reason: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(graphs.Bucket, "capture", fail)
    with pytest.raises(told, match=reason):
        capture(forward_of(make_model("bert")))
