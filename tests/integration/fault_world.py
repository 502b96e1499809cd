"""Looks at a running daemon from outside, and callers that keep asking it, for tests of faults."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from running_daemon import RunningDaemon, until

from gpu_server.client import Client
from gpu_server.errors import RemoteError


def open_files(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_s(pid: int) -> float:
    """For how long all threads of a process have run."""
    # The number of a process's clock, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime(~pid << 3 | 2)


def rss_bytes(pid: int) -> int:
    """Memory that a process holds."""
    return _memory(pid, "VmRSS")


def virtual_bytes(pid: int) -> int:
    """Memory that a process has asked for."""
    return _memory(pid, "VmSize")


def answers(client: Client, value: int, model: str = "Numbers") -> bool:
    """Whether the model Numbers, or one like it, answers, and rightly."""
    return bool(client.infer(model, x=[value])["y"].tolist() == [2 * value + 1])  # type: ignore[union-attr]


def p99_s(took_s: list[float]) -> float:
    """The time within which 99 of 100 were done."""
    return sorted(took_s)[len(took_s) * 99 // 100]


def answers_now(client: Client) -> bool:
    """As `answers`, where an error is a no."""
    try:
        return answers(client, 5)
    except RemoteError:
        return False


class Callers:
    """Clients, each in a thread of its own, that ask a model all the time; use as a context manager, which ends them.

    pause_s: how long each waits between two requests, on average. took_s: how long each answer took. errors: what came
    instead of answers. A wrong answer fails the test.
    """

    def __init__(
        self, running: RunningDaemon, count: int = 4, model: str = "Numbers", pause_s: float = 0.0
    ) -> None:
        self.took_s: list[float] = []
        self.errors: list[RemoteError] = []
        self._model = model
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._clients = [Client(running.endpoint, timeout_s=30) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._futures: list[Future[None]] = []

    def more(self, count: int = 50) -> None:
        """Return once so many more answers have come."""
        target = len(self.took_s) + count
        until(lambda: len(self.took_s) >= target, f"{count} more answers")

    def next(self, count: int) -> list[float]:
        """How long each of the next answers takes, at least so many."""
        begun = len(self.took_s)
        self.more(count)
        return self.took_s[begun:]

    def __enter__(self) -> Callers:
        self._futures = [
            self._pool.submit(self._run, client, 1_000_000 * number)
            for number, client in enumerate(self._clients)
        ]
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            for future in self._futures:
                future.result(40)
        finally:
            self._pool.shutdown(wait=False)
            for client in self._clients:
                client.close()

    def _run(self, client: Client, value: int) -> None:
        dice = random.Random(value)
        while not self._stop.wait(dice.uniform(0, 2 * self._pause_s)):
            value += 1
            begun = time.perf_counter()
            try:
                assert answers(client, value, self._model), f"a wrong answer for {value}"
            except RemoteError as error:
                self.errors.append(error)
                self._stop.wait(0.01)
            else:
                self.took_s.append(time.perf_counter() - begun)


def _memory(pid: int, line: str) -> int:
    found = re.search(rf"{line}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])
