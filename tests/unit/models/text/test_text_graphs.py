"""Captured forwards: every bucket, fill and neighbour gives what the direct forward gives. Most of it needs CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_server.engine.isolation import Answer
from gpu_server.engine.runner import Runner
from gpu_server.models.text.attention import attend
from gpu_server.models.text.embedding import EmbeddingModel
from gpu_server.models.text.graphs import Bucket, Forward, Outputs, filler, ladder, leading
from gpu_server.wire.documents import ModelInfo
from gpu_server.wire.tensor import Tensor

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
MAX_TOKENS, MAX_ITEMS = 1024, 400
GRAPHED = [
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
    "nomic_bert",
    "qwen3",
    "mistral",
    "gemma3_text",
    "albert",
]
FUSED = ["bert", "roberta"]
Row = NDArray[np.int32]


@pytest.mark.parametrize(
    ("most", "sizes"), [(16, [16]), (100, [16, 32, 64, 100]), (600, [16, 32, 64, 128, 256, 384, 512, 600])]
)
def test_a_ladder_ends_at_the_largest_batch(most: int, sizes: list[int]) -> None:
    assert ladder(most) == sizes


def test_a_full_ladder_wastes_at_most_half() -> None:
    sizes = ladder(16_384)
    assert all(after / before <= 2 for before, after in itertools.pairwise(sizes))
    assert all(after / before <= 1.5 for before, after in itertools.pairwise(sizes) if before >= 256)


@given(st.integers(0, 2000), st.integers(0, 50), st.integers(1, 600))
def test_filler_keeps_to_what_a_bucket_holds(tokens: int, items: int, max_length: int) -> None:
    lengths = filler(tokens, items, max_length)
    assert len(lengths) <= items
    assert lengths.sum() == min(tokens, items * max_length)
    assert all(1 <= length <= max_length for length in lengths)


@pytest.mark.parametrize(
    ("tokens", "items", "kept"), [(100, 9, 3), (26, 9, 3), (25, 9, 2), (24, 9, 2), (100, 1, 1), (4, 9, 0)]
)
def test_leading_sequences_that_fit(tokens: int, items: int, kept: int) -> None:
    lengths = np.array([5, 19, 2])
    ids, cut = leading(np.arange(26, dtype=np.int32), lengths, tokens, items)
    assert (cut.tolist(), len(ids)) == (lengths[:kept].tolist(), lengths[:kept].sum())


def started(
    folder: Path, max_tokens: int = MAX_TOKENS, max_items: int = MAX_ITEMS, **options: object
) -> Runner:
    model = EmbeddingModel(str(folder), dtype="float16", **options)  # type: ignore[arg-type]
    device = torch.device("cuda")
    model.load(device)
    model.max_batch_tokens, model.max_batch_items = max_tokens, max_items
    runner = Runner(model, device)
    model.warm_up(runner.run)
    return runner


def run(runner: Runner, rows: list[Row], **params: object) -> torch.Tensor:
    return vectors(runner.run({"input_ids": Tensor.from_rows(rows)}, params))


def vectors(answer: Answer) -> torch.Tensor:
    assert answer[1] == []
    return torch.from_numpy(answer[0]["embedding"].to_numpy().copy())


def rows_of(lengths: list[int], seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 96, n, dtype=np.int32) for n in lengths]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("how", ["graphs", "compiled graphs", "fused graphs"])
@pytest.mark.parametrize("family", GRAPHED)
def test_graphs_give_what_the_direct_forward_gives(
    make_model: Callable[..., Path], family: str, how: str
) -> None:
    if (how == "compiled graphs" and family == "albert") or (how == "fused graphs" and family not in FUSED):
        pytest.skip(f"{family} has no {how}")
    folder = make_model(
        family, pooling="lasttoken" if family in ("qwen3", "mistral") else "mean", normalize=True
    )
    # Every bucket is compiled for: three are enough. Processes to compile in would take longer to start.
    with torch._inductor.config.patch(compile_threads=1):
        graphed = started(folder, 64, 50, compiled=how == "compiled graphs", fused=how == "fused graphs")
    direct = started(folder, graphs=False)
    info = ModelInfo(name="m")
    graphed.model.describe(info)
    assert info.runs == how
    assert info.graphs == (16, 32, 64)
    mixes = [[1], [16], [17], [64], [1] * 50, [40, 24], [7, 1, 9, 30, 16, 1], [3] * 20 + [2]]
    for number, lengths in enumerate(mixes):
        rows = rows_of(lengths, number)
        cosine = torch.nn.functional.cosine_similarity(run(graphed, rows), run(direct, rows))
        assert float(cosine.min()) > 0.9995, (lengths[:3], len(lengths))


@pytest.mark.gpu
@needs_cuda
def test_a_text_is_the_same_alone_and_in_any_company(make_model: Callable[..., Path]) -> None:
    model = started(make_model("bert", pooling="mean", normalize=True))
    text = rows_of([23], 9)
    alone = run(model, text)
    for seed, others in enumerate(([1], [100] * 9, [5] * 150, [64, 1, 1], [30] * 3)):
        rows = [*rows_of(others, seed), *text]
        together = run(model, rows)[-1:]
        assert float(torch.nn.functional.cosine_similarity(alone, together)) > 0.9999


@pytest.mark.gpu
@needs_cuda
def test_a_batch_over_the_ladder_runs_directly(make_model: Callable[..., Path]) -> None:
    model = started(make_model("bert", pooling="cls"))
    assert run(model, rows_of([100] * 12)).shape == (12, 32)
    assert run(model, rows_of([1] * (MAX_ITEMS + 1))).shape == (MAX_ITEMS + 1, 32)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("normalize", [False, True])
def test_every_form_of_an_embedding(make_model: Callable[..., Path], normalize: bool) -> None:
    """One of them lands in the host's memory by itself, in small batches."""
    folder = make_model("bert", pooling="mean", normalize=normalize)
    graphed, direct = started(folder, 4096, 4096), started(folder, graphs=False)
    for lengths in ([5], [3] * 600, [3] * 1000):
        rows = rows_of(lengths)
        for params in ({}, {"normalize": True}, {"normalize": False}, {"dimensions": 8}):
            got, want = run(graphed, rows, **params), run(direct, rows, **params)
            assert got.shape == want.shape
            assert float((got - want).norm() / want.norm()) < 3e-3, (lengths[:1], params)


@pytest.mark.gpu
@needs_cuda
def test_an_answer_outlives_the_batches_after_it(make_model: Callable[..., Path]) -> None:
    runner = started(make_model("bert", pooling="mean"))
    texts = [rows_of([length], length) for length in range(1, 13)]
    alone = [run(runner, text) for text in texts]
    pending = [runner.enqueue({"input_ids": Tensor.from_rows(text)}, {}) for text in texts]
    for batch, want in zip(pending, alone, strict=True):
        assert torch.equal(vectors(batch.wait()), want)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("own_stream", [False, True])
def test_a_graph_that_becomes_garbage_does_not_break_the_capture_of_another(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, own_stream: bool
) -> None:
    if own_stream:
        with torch.cuda.stream(torch.cuda.Stream()):
            capture_beside_garbage(make_model, monkeypatch)
    else:
        capture_beside_garbage(make_model, monkeypatch)


def capture_beside_garbage(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model("bert", pooling="mean")
    held = [started(folder, 64, 50)]
    run = Bucket.run

    def leaves_garbage(bucket: Bucket, forward: Forward) -> Outputs:
        if held and torch.cuda.is_current_stream_capturing():
            cycle: list[object] = [held.pop()]
            cycle.append(cycle)
            del cycle
            # More than the first generation's threshold.
            assert len([[] for _ in range(2000)]) == 2000
        return run(bucket, forward)

    monkeypatch.setattr(Bucket, "run", leaves_garbage)
    assert started(folder, 64, 50).model._forward.runs == "fused graphs"  # type: ignore[attr-defined]
    assert not held


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(
    ("family", "how"), [("albert", "graphs"), ("qwen3", "compiled graphs"), ("bert", "fused graphs")]
)
def test_all_kernels_run_on_one_stream(make_model: Callable[..., Path], family: str, how: str) -> None:
    """As in an engine that serves texts alone: on a second one they would slow down every graph."""
    folder = make_model(family, pooling="mean")
    with (
        torch._inductor.config.patch(compile_threads=1),
        torch.cuda.stream(torch.cuda.Stream()),
        profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen,
    ):
        runner = started(folder, 64, 50)
        run(runner, rows_of([5, 9]))
    assert runner.model._forward.runs == how  # type: ignore[attr-defined]
    kernels = [
        event
        for event in seen.events() or []
        if event.device_type == DeviceType.CUDA and not event.name.startswith("Mem")
    ]
    assert len(kernels) > 100
    assert len({event.device_resource_id for event in kernels}) == 1


class Layer(torch.nn.Module):
    is_causal = False


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("dim", "kv_heads"), [(8, 4), (32, 4), (64, 2), (80, 4), (128, 1), (256, 2)])
@pytest.mark.parametrize(("causal", "window"), list(itertools.product([False, True], [None, 1, 9, 70])))
def test_tiled_attention_equals_sdpa(dim: int, kv_heads: int, causal: bool, window: int | None) -> None:
    torch.manual_seed(0)
    lengths = np.array([1, 65, 3, 130, 64, 63])
    total, padded = int(lengths.sum()), 400
    q, k, v = (
        torch.randn(1, h, padded, dim, device="cuda", dtype=torch.float16) for h in (4, kv_heads, kv_heads)
    )
    ends = np.cumsum(lengths)
    bounds = np.zeros((2, padded), np.int32)
    bounds[0, total:] = total
    bounds[:, :total] = np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)
    lo, hi = torch.from_numpy(bounds).cuda()
    got, _ = attend(
        Layer(), q, k, v, None, scaling=0.2, is_causal=causal, sliding_window=window, bounds=(lo, hi)
    )
    place = torch.arange(padded, device="cuda")
    seen = (place[None] >= lo[:, None]) & (place[None] < hi[:, None])
    back = place[:, None] - place[None]
    seen &= (back >= 0) if causal else torch.ones_like(seen)
    if window is not None:
        seen &= back.abs() < window
    wide = [x.double().repeat_interleave(4 // x.shape[1], 1) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=seen, scale=0.2).transpose(1, 2)
    error = (got[:, :total].double() - want[:, :total]).norm() / want[:, :total].norm()
    assert float(error) < 2e-3
    assert bool(torch.isfinite(got).all())
