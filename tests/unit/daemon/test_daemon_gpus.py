"""GPUs through a driver that answers, answers in part, or does not."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from gpu_server.daemon.gpus import GPUs, sample


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package `pynvml` with one GPU; `sampled` is set when it has been asked for the power."""
    fake = ModuleType("pynvml")
    sampled = threading.Event()

    def handle(uuid: str) -> str:
        if uuid != "GPU-1":
            raise NVMLError
        return uuid

    def power(handle: str) -> int:
        sampled.set()
        return 250_500

    for name, value in {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "sampled": sampled,
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


def test_the_thread_starts_with_the_first_gpu_and_ends(nvml: ModuleType) -> None:
    before = threading.active_count()
    gpus = GPUs(every_s=0.001)
    gpus.watch(())
    assert threading.active_count() == before
    gpus.watch(("GPU-1",))
    assert nvml.sampled.wait(10)
    gpus.close()
    assert gpus._thread is not None
    gpus._thread.join(10)
    assert not gpus._thread.is_alive()
    assert [gpu.uuid for gpu in gpus.seen] == ["GPU-1"]


def test_without_the_package_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus = GPUs()
    gpus.watch(("GPU-1",))
    assert gpus._thread is not None
    gpus._thread.join(10)
    assert gpus.seen == ()
