"""What tests of real CUDA faults look at: the driver's view of the device, and callers at load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gpu_callers
import torch
from gpu_callers import Asked
from running_daemon import clean_environment

CUDA = torch.cuda.is_available()
SIMULATED = not CUDA and os.environ.get("SIMULATE_GPU_FAULTS") == "1"
"""Run on a CPU, where the models only look as if they broke a device: for work on the tests themselves."""
FAULT_MODELS = Path(__file__).parent / "models"


def used_mib() -> int:
    """MiB of the tests' GPU that are in use by anything, as the driver says; 0 where there is none."""
    return sum(_ask_driver("gpu=memory.used"))


def compute_processes() -> int:
    """How many processes beside this one have a context on the tests' GPU; 1 on a CPU, as if it were the engine."""
    return len(_ask_driver("compute-apps=pid")) - torch.cuda.is_initialized() if CUDA else 1


def _ask_driver(query: str) -> list[int]:
    if not CUDA:
        return []
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", device, f"--query-{query}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return [int(line) for line in answer.stdout.split()]


class Asking:
    """`gpu_callers.py` with its arguments; use as a context manager. `asked` is what it did, once that has ended.

    capacity: requests a second that it reached with all its threads busy.
    """

    def __init__(self, endpoint: str, *, threads: int, share: float) -> None:
        self.asked: list[Asked] = []
        self._process = subprocess.Popen(
            [sys.executable, gpu_callers.__file__, endpoint, str(threads), str(share)],
            env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Asking:
        assert self._process.stdout is not None
        self.capacity = float(self._process.stdout.readline())
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._process.kill()
        said, _ = self._process.communicate(timeout=60)
        if error is None:
            self.asked = [Asked(*one) for one in json.loads(said)]

    def outcomes(self) -> Counter[str]:
        """How many requests ended in which way."""
        return Counter(asked.outcome for asked in self.asked)

    def p99_ms(self, since: float, until: float) -> float:
        """The 99th percentile of the requests due in a time; 0 if there were none."""
        took = sorted(asked.took for asked in self.asked if since <= asked.due < until)
        return took[int(0.99 * len(took))] * 1e3 if took else 0.0
