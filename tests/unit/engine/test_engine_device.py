"""Which device is chosen, and which errors mean that it is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from gpu_server.engine import device as devices
from gpu_server.errors import ConfigError
from gpu_server.models import device_errors

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")


@pytest.fixture
def threads() -> Iterator[None]:
    before, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(before)
    torch.set_grad_enabled(grad)


@without_gpu
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert devices.choose("auto") == torch.device("cpu")


def test_auto_is_the_first_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(devices.choose("auto")) == "cuda:0"
    assert str(devices.choose("cuda")) == "cuda:0"
    assert str(devices.choose("cuda:1")) == "cuda:1"
    with pytest.raises(ConfigError, match="'cuda:2' is not there: torch sees 2 CUDA devices"):
        devices.choose("cuda:2")


@without_gpu
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="'cuda' is not there: torch sees 0 CUDA devices"):
        devices.choose("cuda")


@pytest.mark.parametrize("wanted", ["", "gpu", "cuda:x", "cpu:-3"])
def test_a_device_torch_does_not_know(wanted: str) -> None:
    with pytest.raises(ConfigError, match="is not one torch knows"):
        devices.choose(wanted)


def test_preparing_the_cpu(threads: None) -> None:
    devices.prepare(torch.device("cpu"), 1)
    assert torch.get_num_threads() == 1
    assert not torch.is_grad_enabled()
    assert devices.describe(torch.device("cpu")) == "cpu"


@pytest.fixture
def cudnn() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(("wish", "on"), [("", False), ("0", False), ("1", True)])
def test_cudnn_attention_is_off_on_a_gpu_unless_asked_for(
    threads: None, cudnn: None, wish: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.kernel_cache, "keep", lambda: None)
    monkeypatch.setenv("GPU_SERVER_CUDNN_ATTENTION", wish)
    torch.backends.cuda.enable_cudnn_sdp(not on)
    devices.settle(torch.device("cuda"), 1)
    assert torch.backends.cuda.cudnn_sdp_enabled() is on


def test_a_gpu_is_taken_when_its_context_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    monkeypatch.setattr(torch, "empty", lambda size, device: done.append((size, device)))
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    with devices.waking(gpu):
        pass
    assert done == ["init", (1, gpu), gpu]


@pytest.mark.parametrize(
    ("device", "sources", "own"),
    [
        ("cuda:1", ["a/b", "./c", ""], True),
        ("cuda:1", ["module:Class"], False),
        ("cuda:1", ["a/b", "module:Class"], False),
        ("cpu", ["a/b"], False),
    ],
)
def test_only_texts_alone_leave_the_default_stream(
    monkeypatch: pytest.MonkeyPatch, device: str, sources: list[str], own: bool
) -> None:
    streams: list[object] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream of", str(device)))
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    devices.use_own_stream(torch.device(device), sources)
    assert streams == ([("stream of", device)] if own else [])


def test_a_device_that_does_not_wake_is_told_of_after_the_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def fail(size: int, device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(torch.AcceleratorError), devices.waking(torch.device("cpu")):
        imported.append("all")
    assert imported == ["all"]


@pytest.mark.parametrize(
    ("error", "full", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            True,
            False,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False, True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"),
            False,
            False,
        ),
        (torch.AcceleratorError("CUDA error: invalid configuration argument"), False, False),
        (RuntimeError("shapes do not match"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_kinds_of_errors(error: Exception, full: bool, lost: bool) -> None:
    assert (device_errors.is_out_of_memory(error), device_errors.is_lost(error)) == (full, lost)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_as_many_threads_as_cores_that_may_be_used(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7})
    devices.prepare(torch.device("cpu"), 0)
    assert torch.get_num_threads() == 3
