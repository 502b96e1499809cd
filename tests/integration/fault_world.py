"""Looks at a running daemon from outside, and callers that keep asking it, for tests of faults."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from metronome import Metronome
from running_daemon import RunningDaemon, until

from gpu_server.client import Client
from gpu_server.errors import RemoteError

RECOVERED_S = 2.0
"""So long after a stall the callers that it gathered have been answered."""


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

    pause_s: how long each waits between two requests, on average. errors: what came instead of answers. A wrong answer
    fails the test.
    """

    def __init__(
        self, running: RunningDaemon, count: int = 4, model: str = "Numbers", pause_s: float = 0.0
    ) -> None:
        self.errors: list[RemoteError] = []
        self._answered: list[tuple[float, float]] = []
        self._model = model
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._clients = [Client(running.endpoint, timeout_s=30) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._futures: list[Future[None]] = []

    @property
    def took_s(self) -> list[float]:
        """How long each answer took, in the order in which they came."""
        return [came - asked for asked, came in self._answered]

    def more(self, count: int = 50) -> None:
        """Return once so many more answers have come."""
        target = len(self._answered) + count
        until(lambda: len(self._answered) >= target, f"{count} more answers")

    def next(self, count: int) -> list[float]:
        """How long each of the next answers takes, at least so many."""
        begun = len(self._answered)
        self.more(count)
        return self.took_s[begun:]

    def next_calm(self, count: int, clock: Metronome) -> list[float]:
        """How long answers take that are asked from now on: so many, without those that a stall may have delayed.

        Fewer where the machine stalls so much that among five times as many these are not enough.
        """
        begun, since = len(self._answered), time.monotonic()

        def asked() -> list[tuple[float, float]]:
            return [(asked, came) for asked, came in self._answered[begun:] if asked >= since]

        def calm() -> list[tuple[float, float]]:
            return [(asked, came) for asked, came in asked() if clock.calm(asked - RECOVERED_S, came)]

        until(lambda: len(calm()) >= count or len(asked()) >= 5 * count, f"{count} more answers")
        return [came - asked for asked, came in calm()]

    def __enter__(self) -> Callers:
        # All are connected from here on, whoever is answered first.
        for client in self._clients:
            client.hello()
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
            asked = time.monotonic()
            try:
                assert answers(client, value, self._model), f"a wrong answer for {value}"
            except RemoteError as error:
                self.errors.append(error)
                self._stop.wait(0.01)
            else:
                self._answered.append((asked, time.monotonic()))


def _memory(pid: int, line: str) -> int:
    found = re.search(rf"{line}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])
