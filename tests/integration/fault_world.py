"""Looks at a running daemon from outside, and callers that keep asking it, for tests of faults."""

from __future__ import annotations

import os
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


def rss_bytes(pid: int) -> int:
    """Memory that a process holds."""
    return _memory(pid, "VmRSS")


def virtual_bytes(pid: int) -> int:
    """Memory that a process has asked for."""
    return _memory(pid, "VmSize")


def answers(client: Client, value: int) -> bool:
    """Whether the model Numbers answers, and rightly."""
    return bool(client.infer("Numbers", x=[value])["y"].tolist() == [2 * value + 1])  # type: ignore[union-attr]


def answers_now(client: Client) -> bool:
    """As `answers`, where an error is a no."""
    try:
        return answers(client, 5)
    except RemoteError:
        return False


class Callers:
    """Clients, each in a thread of its own, that ask Numbers all the time; use as a context manager, which ends them.

    took_s: how long each answer took. errors: what came instead of answers. A wrong answer fails the test.
    """

    def __init__(self, running: RunningDaemon, count: int = 4, pause_s: float = 0.0) -> None:
        self.took_s: list[float] = []
        self.errors: list[RemoteError] = []
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._clients = [Client(running.endpoint, timeout_s=30) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._futures: list[Future[None]] = []

    def more(self, count: int = 50) -> None:
        """Return once so many more answers have come."""
        target = len(self.took_s) + count
        until(lambda: len(self.took_s) >= target, f"{count} more answers")

    def p99_s(self, count: int) -> float:
        """The time within which 99 % of the next answers come."""
        begun = len(self.took_s)
        self.more(count)
        return sorted(self.took_s[begun:])[-1 - count // 100]

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
        while not self._stop.wait(self._pause_s):
            value += 1
            begun = time.perf_counter()
            try:
                assert answers(client, value), f"a wrong answer for {value}"
            except RemoteError as error:
                self.errors.append(error)
                self._stop.wait(0.01)
            else:
                self.took_s.append(time.perf_counter() - begun)


def _memory(pid: int, line: str) -> int:
    found = re.search(rf"{line}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])
