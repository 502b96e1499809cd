"""What an engine on a CPU says of the memory it uses."""

from __future__ import annotations

import subprocess
import sys

import torch

from gpu_server.engine import memory
from gpu_server.wire.monitoring import EngineMemory, ModelMemory

CPU = torch.device("cpu")


STAGES = """
import torch
from gpu_server.engine import memory
stages = memory.Stages(torch.device("cpu"))
weights = torch.ones(32 << 20)
stages.loaded()
buffers = torch.ones(16 << 20)
taken = stages.warmed_up("m")
print(taken.weights >> 20, taken.warm_up >> 20)
"""


def test_weights_are_told_from_the_warm_up() -> None:
    # A process of its own, as an engine is: here the collector may free what earlier tests left, at any line.
    done = subprocess.run(
        [sys.executable, "-c", STAGES], capture_output=True, text=True, timeout=60, check=True
    )
    weights, warm_up = map(int, done.stdout.split())
    assert 112 < weights < 160
    assert 48 < warm_up < 96


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
