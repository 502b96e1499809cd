"""Findings on the GPU: the driver, and the torch build beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_server.checks.finding import Finding, fine
from gpu_server.source import INSTALL_SERVER

WHEELS = "https://pytorch.org/get-started/locally/"
NO_PACKAGE = "the package nvidia-ml-py is not installed"
ABSENT = "No module named 'torch'"
KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
NODES = Path("/dev")


def read_driver() -> dict[str, Any]:
    """What NVML says: version, the CUDA version it supports, GPUs with their memory. `error` where it does not answer."""
    nodes = sorted(path.name for path in NODES.glob("nvidia[0-9]*"))
    facts: dict[str, Any] = {"nodes": nodes, "kernel": KERNEL_DRIVER.exists(), "gpus": [], "error": ""}
    try:
        import pynvml
    except ImportError:
        return facts | {"error": NO_PACKAGE}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return facts | {"error": str(error)}
    with suppress(pynvml.NVMLError):
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        facts["version"] = str(pynvml.nvmlSystemGetDriverVersion())
        facts["cuda"] = [cuda // 1000, cuda % 1000 // 10]
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = str(pynvml.nvmlDeviceGetName(handle))
            facts["gpus"].append({"name": name, "free": int(memory.free), "total": int(memory.total)})
    pynvml.nvmlShutdown()
    return facts


def driver(facts: Mapping[str, Any]) -> Finding:
    """Whether there is a driver, and GPUs that it gives us."""
    if facts["gpus"]:
        gpus = ", ".join(
            f"{gpu['name']} ({gpu['free'] >> 20:,} of {gpu['total'] >> 20:,} MiB free)"
            for gpu in facts["gpus"]
        )
        major, minor = facts["cuda"]
        return fine("driver", f"driver {facts['version']}, CUDA up to {major}.{minor}: {gpus}")
    if not facts["kernel"] and not facts["nodes"]:
        return Finding("driver", "info", "no NVIDIA driver is loaded: models run on the CPU")
    if facts["kernel"] and not facts["nodes"]:
        return Finding(
            "driver",
            "error",
            "the driver is loaded, but this process sees no /dev/nvidia*",
            "give the container its GPU (docker run --gpus all), or the unit its devices: gpu-server systemd install",
        )
    if facts["error"] == NO_PACKAGE:
        return Finding("driver", "info", f"{NO_PACKAGE}, so the driver was not asked", INSTALL_SERVER)
    return Finding(
        "driver",
        "error",
        f"the driver does not answer: {facts['error'] or 'it knows no GPU'}",
        "run nvidia-smi; after an update of the driver reboot, or load its kernel module anew",
    )


def torch_build(facts: Mapping[str, Any], driver: Mapping[str, Any]) -> Finding:
    """Whether torch is there and was built for this driver and these GPUs."""
    if "version" not in facts:
        return _no_torch(facts["error"])
    has = f"torch {facts['version']}, {'CUDA ' + facts['cuda'] if facts['cuda'] else 'built without CUDA'}"
    if not driver["gpus"]:
        return fine("torch", has)
    if not facts["cuda"]:
        return Finding("torch", "error", f"{has}, but there is a GPU", f"install a build with CUDA: {WHEELS}")
    built = [int(part) for part in facts["cuda"].split(".")[:2]]
    if built[0] > driver["cuda"][0]:
        newest = ".".join(map(str, driver["cuda"]))
        return Finding(
            "torch",
            "error",
            f"{has}, but driver {driver['version']} knows CUDA only up to {newest}",
            f"update the driver, or install a torch built for CUDA {driver['cuda'][0]}: {WHEELS}",
        )
    if not facts["devices"]:
        return Finding(
            "torch",
            "error",
            f"{has}, but it can use no GPU: {facts['reason'] or 'it does not say why'}",
            "look at CUDA_VISIBLE_DEVICES, the rights on /dev/nvidia*, and nvidia-smi",
        )
    return _built_for(has, facts)


def _no_torch(error: str) -> Finding:
    """Absent, it is missed only where models are to run, which their own finding says; broken, it is always wrong."""
    if error == ABSENT:
        return Finding("torch", "info", "torch is not installed: enough for web workers, not for a daemon")
    return Finding("torch", "error", f"torch cannot be imported: {error}", f"install torch anew: {WHEELS}")


def _built_for(has: str, facts: Mapping[str, Any]) -> Finding:
    """A build runs on GPUs of a major version that it has code for, and of no older one."""
    majors = {int(arch.partition("_")[2].rstrip("af")) // 10 for arch in facts["built_for"] if "_" in arch}
    for device in facts["devices"]:
        major, minor = device["capability"]
        if (
            majors
            and major not in majors
            and not any(arch.startswith("compute_") for arch in facts["built_for"])
        ):
            return Finding(
                "torch",
                "error",
                f"{has} has no code for {device['name']} (compute capability {major}.{minor})",
                f"install a build that lists sm_{major}{minor}: {WHEELS}",
            )
    return fine("torch", f"{has}: {', '.join(device['name'] for device in facts['devices'])}")
