"""Memory over engines, and its warning."""

from __future__ import annotations

import logging

import pytest

from gpu_server.daemon.memory import MemoryWatch, by_device
from gpu_server.wire.monitoring import EngineMemory, ModelMemory

OLD = EngineMemory(
    allocated=1, reserved=2, peak=3, limit=50, free=40, total=60, models=(ModelMemory(name="m", weights=1),)
)
NEW = EngineMemory(allocated=10, reserved=20, peak=30, limit=50, free=30, total=60, gpu="GPU-1")


def test_two_engines_on_a_device_hold_the_sum() -> None:
    devices = by_device([("cuda:0", OLD), ("cuda:1", OLD), ("cuda:0", NEW)])
    both = devices["cuda:0"]
    assert (both.allocated, both.reserved, both.peak) == (11, 22, 33)
    assert (both.limit, both.free, both.gpu) == (50, 30, "GPU-1")
    assert [model.name for model in both.models] == ["m"]
    assert devices["cuda:1"] == OLD


@pytest.mark.parametrize(("reserved", "free", "left"), [(20, 100, 30), (20, 5, 5), (60, 100, 0)])
def test_what_is_left_is_bounded_by_the_budget_and_by_others(reserved: int, free: int, left: int) -> None:
    assert EngineMemory(reserved=reserved, limit=50, free=free).left == left


def test_the_warning_comes_once_until_there_was_room(caplog: pytest.LogCaptureFixture) -> None:
    watch = MemoryWatch()
    said = []
    for left in (50, 9, 8, 12, 9, 20, 9):
        with caplog.at_level(logging.WARNING):
            watch.check({"cuda:0": EngineMemory(reserved=100 - left, limit=100, free=100)})
        said.append(len(caplog.records))
    assert said == [0, 1, 1, 1, 1, 1, 2]
    assert caplog.records[0].message == "device memory runs out"


def test_an_engine_that_has_not_said_anything_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    MemoryWatch().check({"cuda:0": EngineMemory()})
    assert not caplog.records
