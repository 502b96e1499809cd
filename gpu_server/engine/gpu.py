"""What NVML says of the engine's GPU, asked in a thread of its own: a driver in trouble may take seconds to answer.

Asked here and not in the daemon: NVML may map CUDA's own library, which belongs in this process alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType

from gpu_server.wire.monitoring import GPUStatus

EVERY_S = 1.0


def watch(
    uuid: str, tell: Callable[[GPUStatus], None], *, every_s: float = EVERY_S
) -> threading.Thread | None:
    """Give `tell` a sample of a GPU again and again, until it raises OSError.

    None, and no sample, for "" (a CPU) and without the package `nvidia-ml-py`; a driver that does not answer ends it.
    """
    if not uuid:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    thread = threading.Thread(target=_run, args=(pynvml, uuid, tell, every_s), name="nvml", daemon=True)
    thread.start()
    return thread


def _run(nvml: ModuleType, uuid: str, tell: Callable[[GPUStatus], None], every_s: float) -> None:
    never = threading.Event()
    with suppress(nvml.NVMLError, OSError):
        nvml.nvmlInit()
        while True:
            tell(sample(nvml, uuid))
            never.wait(every_s)


def sample(nvml: ModuleType, uuid: str) -> GPUStatus:
    """One GPU now; what its driver does not tell stays 0."""
    status = GPUStatus(uuid=uuid)
    with suppress(nvml.NVMLError):
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        status.name = str(nvml.nvmlDeviceGetName(handle))
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            status.memory_total, status.memory_used = int(memory.total), int(memory.used)
        with suppress(nvml.NVMLError):
            status.utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with suppress(nvml.NVMLError):
            status.power_w = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        with suppress(nvml.NVMLError):
            status.temperature_c = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return status
