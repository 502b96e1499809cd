"""The device's memory: what this process holds of it, by model and in all, and how much it may hold."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from gpu_server.wire.monitoring import EngineMemory, ModelMemory

EVERY_S = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Held(NamedTuple):
    """Bytes of live tensors, taken from the device, and allocated at most; on a CPU those of the process."""

    allocated: int
    reserved: int
    peak: int


def bound(device: torch.device, max_memory_mb: int) -> None:
    """Let this process take that many MiB of a GPU's memory, 0 for all; more is an out-of-memory error."""
    if device.type == "cuda" and max_memory_mb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (max_memory_mb << 20) / total), device)


def held(device: torch.device) -> Held:
    """What this process holds now."""
    if device.type == "cuda":
        return Held(
            torch.cuda.memory_allocated(device),
            torch.cuda.memory_reserved(device),
            torch.cuda.max_memory_allocated(device),
        )
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    # The kernel's peak comes from counters that lag behind those of statm.
    peak = max(resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
    return Held(resident, resident, peak)


def room(device: torch.device) -> tuple[int, int]:
    """Bytes of the device that nobody has, and all it has; on a CPU the host's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))  # type: ignore[return-value]


def uuid(device: torch.device) -> str:
    """The GPU's UUID as NVML writes it, "" for a CPU."""
    if device.type != "cuda":
        return ""
    known = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    return f"GPU-{known}" if known else ""


class Stages:
    """Tells a model's weights from what its warm-up takes: make it before the load, then say when each is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._loaded = held(device)

    def loaded(self) -> None:
        """The weights are on the device."""
        self._loaded = held(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def warmed_up(self, name: str) -> ModelMemory:
        """The model is ready to serve."""
        now = held(self._device)
        return ModelMemory(
            name=name,
            weights=max(0, self._loaded.allocated - self._before.allocated),
            warm_up=max(0, now.reserved - self._loaded.reserved),
            activations=max(0, now.peak - self._loaded.allocated),
        )


class Reporter:
    """Sends the engine's memory to the daemon, at most once in `EVERY_S` seconds."""

    def __init__(
        self,
        device: torch.device,
        max_memory_mb: int,
        models: Iterable[ModelMemory],
        send: Callable[[EngineMemory], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._max_bytes = max_memory_mb << 20 if device.type == "cuda" else 0
        self._models = tuple(models)
        self._send = send
        self._clock = clock
        self._gpu = uuid(device)
        self._due = 0.0

    def tick(self) -> None:
        """Report if it is time to."""
        now = self._clock()
        if now >= self._due:
            self._due = now + EVERY_S
            self._send(self.measure())

    def measure(self) -> EngineMemory:
        """The memory now."""
        mine = held(self._device)
        free, total = room(self._device)
        return EngineMemory(
            allocated=mine.allocated,
            reserved=mine.reserved,
            peak=mine.peak,
            limit=min(self._max_bytes or total, total),
            free=free,
            total=total,
            gpu=self._gpu,
            models=self._models,
        )
