"""Device memory over all engines: who holds what, and a warning before it runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gpu_server.wire.monitoring import EngineMemory

log = logging.getLogger(__name__)

WARN_BELOW = 0.10
CALM_ABOVE = 0.15
"""Parts of the limit that are left; apart, so that a device near the bound is not warned of again and again."""


def by_device(engines: Iterable[tuple[str, EngineMemory]]) -> dict[str, EngineMemory]:
    """The memory of engines on one device put together; what is said of the device itself is the last one's word."""
    devices: dict[str, EngineMemory] = {}
    for device, memory in engines:
        known = devices.get(device, EngineMemory())
        devices[device] = EngineMemory(
            allocated=known.allocated + memory.allocated,
            reserved=known.reserved + memory.reserved,
            peak=known.peak + memory.peak,
            limit=memory.limit,
            free=memory.free,
            total=memory.total,
            gpu=memory.gpu,
            models=known.models + memory.models,
        )
    return devices


class MemoryWatch:
    """Warns once when little is left of a device's memory, and again only after there was room."""

    def __init__(self) -> None:
        self._low: set[str] = set()

    def check(self, devices: dict[str, EngineMemory]) -> None:
        """Look at the memory of every device in use."""
        for device, memory in devices.items():
            if not memory.limit:
                continue
            part = memory.left / memory.limit
            if part < WARN_BELOW and device not in self._low:
                self._low.add(device)
                log.warning(
                    "device memory runs out",
                    extra={
                        "device": device,
                        "left_mb": memory.left >> 20,
                        "reserved_mb": memory.reserved >> 20,
                        "limit_mb": memory.limit >> 20,
                        "free_mb": memory.free >> 20,
                    },
                )
            elif part > CALM_ABOVE:
                self._low.discard(device)
