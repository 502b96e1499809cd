"""Findings on driver and torch, from facts of machines that are not here."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_server.checks import device

NO_GPU = {"nodes": [], "kernel": False, "gpus": [], "error": "NVML Shared Library Not Found"}
H200 = {
    "nodes": ["nvidia0"],
    "kernel": True,
    "version": "570.86",
    "cuda": [12, 8],
    "gpus": [{"name": "NVIDIA H200", "free": 100 << 30, "total": 139 << 30}],
    "error": "",
}
TORCH: dict[str, Any] = {
    "version": "2.13.0+cu128",
    "cuda": "12.8",
    "reason": "",
    "built_for": ["sm_80", "sm_90", "sm_100"],
    "devices": [{"name": "NVIDIA H200", "capability": [9, 0]}],
}


@pytest.mark.parametrize(
    ("facts", "severity", "words"),
    [
        (NO_GPU, "info", "models run on the CPU"),
        (H200, "ok", "CUDA up to 12.8: NVIDIA H200 (102,400 of 142,336 MiB free)"),
        (NO_GPU | {"kernel": True}, "error", "no /dev/nvidia*"),
        (H200 | {"gpus": [], "error": device.NO_PACKAGE}, "info", "was not asked"),
        (H200 | {"gpus": [], "error": "Driver/library version mismatch"}, "error", "version mismatch"),
    ],
)
def test_driver(facts: dict[str, Any], severity: str, words: str) -> None:
    finding = device.driver(facts)
    assert finding.severity == severity
    assert words in finding.found
    assert bool(finding.fix) == (severity == "error" or facts["error"] == device.NO_PACKAGE)


@pytest.mark.parametrize(
    ("torch", "driver", "severity", "words"),
    [
        (TORCH, H200, "ok", "NVIDIA H200"),
        (TORCH | {"cuda": "", "devices": []}, NO_GPU, "ok", "built without CUDA"),
        ({"error": "No module named 'torch'"}, H200, "info", "enough for web workers"),
        ({"error": "libcudnn.so.9: cannot open"}, H200, "error", "cannot be imported: libcudnn.so.9"),
        (TORCH | {"cuda": "", "devices": []}, H200, "error", "but there is a GPU"),
        (TORCH | {"cuda": "13.0", "devices": []}, H200, "error", "knows CUDA only up to 12.8"),
        (TORCH | {"devices": [], "reason": "CUDA initialization: out"}, H200, "error", "CUDA initialization"),
        (
            TORCH | {"built_for": ["sm_70", "sm_80"]},
            H200,
            "error",
            "no code for NVIDIA H200 (compute capability 9.0)",
        ),
        (TORCH | {"built_for": ["sm_80", "compute_80"]}, H200, "ok", "NVIDIA H200"),
        (TORCH | {"built_for": ["sm_90a"]}, H200, "ok", "NVIDIA H200"),
    ],
)
def test_torch_beside_the_driver(
    torch: dict[str, Any], driver: dict[str, Any], severity: str, words: str
) -> None:
    finding = device.torch_build(torch, driver)
    assert (finding.severity, words in finding.found) == (severity, True), finding
    assert (severity == "error") == bool(finding.fix)
