"""The device: which one, and how torch is set for serving."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from gpu_server import source
from gpu_server.engine import cores, kernel_cache
from gpu_server.errors import ConfigError


def choose(wanted: str) -> torch.device:
    """The device to serve on: `auto` is the first GPU, else the CPU. Raises ConfigError on one that is not there."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"device {wanted!r} is not one torch knows (cuda, cuda:N, cpu)") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"device {wanted!r} is not there: torch sees {count} CUDA devices")
        return torch.device("cuda", device.index or 0)
    return device


def prepare(device: torch.device, threads: int) -> None:
    """Settle torch for serving, and take the device."""
    settle(device, threads)
    with waking(device):
        pass


def settle(device: torch.device, threads: int) -> None:
    """Settle torch for serving: thread count, no gradients, kept kernels, and no cuDNN attention.

    cuDNN attention plans anew for each shape (about 62 ms and host memory that stays), which padded and user models
    meet with every new batch; set GPU_SERVER_CUDNN_ATTENTION=1 to keep it.
    """
    torch.set_num_threads(threads or cores.available())
    torch.set_grad_enabled(False)
    if device.type == "cuda":
        kernel_cache.keep()
        torch.backends.cuda.enable_cudnn_sdp(os.environ.get("GPU_SERVER_CUDNN_ATTENTION") == "1")


@contextmanager
def waking(device: torch.device) -> Iterator[None]:
    """Take the device, whose context is made in a thread while the caller imports. Raises what torch says of a failure."""
    if device.type == "cuda":
        # It holds the interpreter's lock, and the thread is then left with the driver alone, which does not.
        torch.cuda.init()
    with ThreadPoolExecutor(1, "device") as aside:
        woken = aside.submit(lambda: torch.empty(1, device=device))
        yield
        woken.result()
    if device.type == "cuda":
        torch.cuda.set_device(device)


def use_own_stream(device: torch.device, sources: Iterable[str]) -> None:
    """Have the calling thread run all on one stream that is not the default one, if all models are texts.

    Graphs cannot be captured on the default stream, and in a process that launches kernels on two, those of its graphs begin
    later (docs/performance.md). Not with users' classes: libraries other than torch use the default stream, which does not
    wait for this one.
    """
    if device.type == "cuda" and all(source.kind_of(one) != "class" for one in sources):
        torch.cuda.set_stream(torch.cuda.Stream(device))


def describe(device: torch.device) -> str:
    """The device for people: `cuda:0 (NVIDIA H200)` or `cpu`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back to the device after an out-of-memory error."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
