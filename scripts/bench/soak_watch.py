"""What scripts/bench/soak.py watches: memory and descriptors of every process, and whether they stay as they are."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_server import Client, RemoteError

PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_UP_PART = 1 / 4
WARM_UP_AT_MOST_S = 300.0
TOLERANCES = {"MiB": (0.05, 32.0), "fds": (0.0, 4.0), "GPU MiB": (0.0, 64.0)}
"""What the last quarter's median may be above the first's: a part of that, or so much; the larger of the two."""


@dataclass(frozen=True)
class Figure:
    """Something that is watched: of what, and its unit, which is a key of `TOLERANCES`."""

    of: str
    unit: str

    def __str__(self) -> str:
        return f"{self.of} {self.unit}"


@dataclass(frozen=True)
class Sample:
    """The figures of one moment. changing: two engines were there, or one was about to end."""

    at_s: float
    changing: bool
    values: dict[Figure, float]


@dataclass(frozen=True)
class Finding:
    """One figure over the run: medians of its first and its last quarter, and the most that the last may be."""

    figure: Figure
    first: float
    last: float
    bound: float

    @property
    def flat(self) -> bool:
        """Whether it stayed as it was."""
        return self.last <= self.bound


class Watch:
    """Samples of a daemon, its current engine and the workers of a Gunicorn; `engines` holds every engine that was seen."""

    def __init__(self, client: Client, daemon: int, gunicorn: int) -> None:
        self.samples: list[Sample] = []
        self.engines: set[int] = set()
        self._client = client
        self._daemon = daemon
        self._gunicorn = gunicorn

    def look(self, changing: bool) -> None:
        """Take a sample, unless the daemon does not answer or a process goes meanwhile."""
        with suppress(RemoteError, FileNotFoundError, ProcessLookupError):
            engines = self._client.status().engines
            self.engines |= {engine.pid for engine in engines}
            values = {
                **_process("daemon", [self._daemon]),
                **_process("engine", [engines[0].pid]),
                **_process("web", children(self._gunicorn)),
            }
            memory = engines[0].memory
            if memory.gpu:
                values[Figure("used", "GPU MiB")] = (memory.total - memory.free) / 2**20
            self.samples.append(Sample(time.monotonic(), changing or len(engines) > 1, values))

    def findings(self) -> list[Finding]:
        """Every figure over the time after the warm-up, without the moments in which models changed."""
        if not self.samples:
            return []
        begun, ended = self.samples[0].at_s, self.samples[-1].at_s
        warm = begun + min(WARM_UP_PART * (ended - begun), WARM_UP_AT_MOST_S)
        steady = [sample for sample in self.samples if sample.at_s >= warm and not sample.changing]
        figures = steady[0].values if steady else {}
        return [judge(figure, [sample.values[figure] for sample in steady]) for figure in figures]


def judge(figure: Figure, values: Sequence[float]) -> Finding:
    """Hold the median of the last quarter against that of the first."""
    quarter = max(1, len(values) // 4)
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    part, much = TOLERANCES[figure.unit]
    return Finding(figure, first, last, first + max(part * first, much))


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _process(name: str, pids: Sequence[int]) -> dict[Figure, float]:
    """Resident memory and descriptors of processes together."""
    resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * PAGE
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return {Figure(name, "MiB"): resident / 2**20, Figure(name, "fds"): float(files)}
