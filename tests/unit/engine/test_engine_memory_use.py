"""What an engine on a CPU says of the memory it uses."""

from __future__ import annotations

import torch

from gpu_server.engine import memory
from gpu_server.wire.monitoring import EngineMemory, ModelMemory

CPU = torch.device("cpu")
MIB = 1 << 20


def test_weights_are_told_from_the_warm_up() -> None:
    stages = memory.Stages(CPU)
    # Blocks of over 32 MiB are never taken from what the process has freed before (M_MMAP_THRESHOLD's upper limit).
    weights = torch.ones(128 * MIB // 4)
    stages.loaded()
    buffers = torch.ones(64 * MIB // 4)
    taken = stages.warmed_up("m")
    assert 112 * MIB < taken.weights < 160 * MIB
    assert 48 * MIB < taken.warm_up < 96 * MIB
    assert weights.numel() + buffers.numel() == 48 * MIB


def test_a_cpu_engine_has_the_hosts_memory_and_no_budget() -> None:
    sent: list[EngineMemory] = []
    models = [ModelMemory(name="m", weights=5)]
    seen = memory.Reporter(CPU, 1, models, sent.append).measure()
    assert 0 < seen.allocated <= seen.peak < seen.total
    assert seen.limit == seen.total > seen.free > 0
    assert (seen.gpu, seen.models) == ("", tuple(models))


def test_memory_is_reported_once_a_second_at_most() -> None:
    moments = [100.0, 100.5, 100.99, 101.0, 101.1, 103.0]
    clock = iter(moments)
    sent: list[EngineMemory] = []
    reporter = memory.Reporter(CPU, 0, [], sent.append, clock=lambda: next(clock))
    counts = []
    for _ in moments:
        reporter.tick()
        counts.append(len(sent))
    assert counts == [1, 1, 1, 2, 2, 3]
