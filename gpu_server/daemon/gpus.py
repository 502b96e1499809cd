"""What NVML says of the GPUs in use, asked in a thread of its own: a driver in trouble may take seconds to answer."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import ModuleType

from gpu_server.wire.monitoring import GPUStatus

EVERY_S = 1.0


class GPUs:
    """`seen` is the latest sample of the watched GPUs; it stays empty without the package `nvidia-ml-py` or a driver."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.seen: tuple[GPUStatus, ...] = ()
        self._every_s = every_s
        self._watched: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, uuids: tuple[str, ...]) -> None:
        """Sample these GPUs from now on; the thread starts with the first."""
        self._watched = uuids
        if uuids and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Sample no more. Does not wait for an answer of the driver."""
        self._stop.set()

    def _run(self) -> None:
        try:
            import pynvml
        except ImportError:
            return
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            while True:
                self.seen = tuple(sample(pynvml, uuid) for uuid in self._watched)
                if self._stop.wait(self._every_s):
                    break
            pynvml.nvmlShutdown()


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
