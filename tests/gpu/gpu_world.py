"""What tests of real CUDA faults look at: the driver's view of the device, the times of log lines, callers at a rate."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch

CUDA = torch.cuda.is_available()
SIMULATED = not CUDA and os.environ.get("SIMULATE_GPU_FAULTS") == "1"
"""Run on a CPU, where the models only look as if they broke a device: for work on the tests themselves."""
FAULT_MODELS = Path(__file__).parent / "models"


def used_mib() -> int:
    """MiB of the first GPU that are in use by anything, as the driver says; 0 where there is none."""
    return sum(_ask_driver("gpu=memory.used"))


def compute_processes() -> int:
    """How many processes have a context on the first GPU; 1 where there is none, as if it were the engine."""
    return len(_ask_driver("compute-apps=pid")) if CUDA else 1


def _ask_driver(query: str) -> list[int]:
    if not CUDA:
        return []
    command = ["nvidia-smi", "-i", "0", f"--query-{query}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return [int(line) for line in answer.stdout.split()]


class Line(NamedTuple):
    """One line of the daemon's log: Unix time, and what follows the event."""

    at: float
    rest: str

    def value(self, key: str) -> float:
        """A number among its values."""
        found = re.search(rf"\b{key}=(-?[0-9.]+)", self.rest)
        assert found, f"no {key} in {self.rest!r}"
        return float(found[1])


def lines(log: str, event: str) -> list[Line]:
    """The daemon's lines of one event, in order."""
    found = re.findall(rf"^(\S+Z) \w+ daemon {re.escape(event)}(?= |$)(.*)$", log, re.MULTILINE)
    return [Line(datetime.fromisoformat(stamp).timestamp(), rest) for stamp, rest in found]


class Asked(NamedTuple):
    """One request of `Callers`: when it was due on the monotonic clock, seconds from then to its outcome."""

    due: float
    took: float
    outcome: str


class Callers:
    """Threads that ask `rate` times a second whatever the answers do, or, with a rate of 0, each after its last answer.

    ask: gets the request's number and tells its outcome in a word.
    """

    def __init__(self, ask: Callable[[int], str], rate: float, threads: int = 32) -> None:
        self.asked: list[Asked] = []
        self._ask = ask
        self._rate = rate
        self._numbers = itertools.count()
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            due = self._begun + number / self._rate if self._rate else time.monotonic()
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            outcome = self._ask(number)
            self.asked.append(Asked(due, time.monotonic() - due, outcome))

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def outcomes(self) -> Counter[str]:
        """How many requests ended in which way."""
        return Counter(asked.outcome for asked in self.asked)

    def p99_ms(self, since: float, until: float) -> float:
        """The 99th percentile of the requests due in a time; 0 if there were none."""
        took = sorted(asked.took for asked in list(self.asked) if since <= asked.due < until)
        return took[int(0.99 * len(took))] * 1e3 if took else 0.0
