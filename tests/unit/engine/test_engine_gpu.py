"""GPUs through a driver that answers, answers in part, or does not."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from gpu_server.engine.gpu import sample, watch
from gpu_server.wire.monitoring import GPUStatus


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package `pynvml` with one GPU."""
    fake = ModuleType("pynvml")

    def handle(uuid: str) -> str:
        if uuid != "GPU-1":
            raise NVMLError
        return uuid

    def power(handle: str) -> int:
        return 250_500

    for name, value in {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": handle,
        "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=100, used=40),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=75),
        "nvmlDeviceGetPowerUsage": power,
        "nvmlDeviceGetTemperature": lambda handle, kind: 45,
    }.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_a_gpu_is_sampled(nvml: ModuleType) -> None:
    gpu = sample(nvml, "GPU-1")
    assert (gpu.name, gpu.memory_total, gpu.memory_used) == ("NVIDIA H200", 100, 40)
    assert (gpu.utilization, gpu.power_w, gpu.temperature_c) == (0.75, 250.5, 45)


def test_what_a_driver_does_not_tell_is_0(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: str) -> int:
        raise NVMLError

    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", refuse)
    gpu = sample(nvml, "GPU-1")
    assert (gpu.power_w, gpu.temperature_c) == (0.0, 45)
    assert sample(nvml, "GPU-2").memory_total == 0


def test_a_gpu_is_told_of_until_nobody_listens(nvml: ModuleType) -> None:
    told: list[GPUStatus] = []

    def tell(status: GPUStatus) -> None:
        told.append(status)
        if len(told) == 3:
            raise BrokenPipeError

    thread = watch("GPU-1", tell, every_s=0.001)
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
    assert [gpu.uuid for gpu in told] == ["GPU-1"] * 3


def test_without_the_package_or_a_gpu_there_is_nothing(
    nvml: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch("", lambda status: None) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert watch("GPU-1", lambda status: None) is None


def test_a_driver_that_does_not_answer_ends_it(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NVMLError

    monkeypatch.setattr(nvml, "nvmlInit", refuse)
    thread = watch("GPU-1", lambda status: None)
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
