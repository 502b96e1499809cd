"""Callers of the web tier whose workers come and go, for tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from fault_world import open_files
from running_daemon import RunningDaemon, until
from running_gunicorn import RunningGunicorn


class WebCallers:
    """Threads that post numbers to the model Numbers without a pause and check each answer; use as a context manager.

    seen: "right", "dropped" where Gunicorn closed the connection without an answer, anything else for what came instead.
    """

    def __init__(self, web: RunningGunicorn, callers: int) -> None:
        self.seen: Counter[str] = Counter()
        self._web = web
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._callers: list[Future[None]] = [self._pool.submit(self._call, n) for n in range(callers)]

    def until_right(self, answers: int, wait_s: float = 60.0) -> None:
        """Return once so many answers were right."""
        until(lambda: self.seen["right"] >= answers, f"{answers} right answers", wait_s)

    def __enter__(self) -> WebCallers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for caller in self._callers:
            caller.result()

    def _call(self, caller: int) -> None:
        for value in count(1_000_000 * caller):
            if self._stop.is_set():
                return
            try:
                status, body = self._web.ask("POST", "/v1/models/Numbers/infer", {"inputs": {"x": [value]}})
            except ConnectionError:
                self.seen["dropped"] += 1
                continue
            good = (status, body.get("outputs")) == (200, {"y": [2 * value + 1]})
            self.seen["right" if good else f"{status} {body}"] += 1


def assert_hang_ups_are_not_noticed(
    running: RunningDaemon, count: int, *, answers_between: int = 0, every_s: float = 0.0
) -> None:
    """Tell Gunicorn so many times to replace its workers, under load, at a pace or after so many answers each.

    Pass mark: no request fails except where Gunicorn itself drops a connection; the daemon's descriptors are flat.
    """
    before = open_files(running.pid)
    with (
        RunningGunicorn(running.endpoint, "--graceful-timeout", "2") as web,
        WebCallers(web, callers=4) as callers,
    ):
        begun = time.monotonic()
        for storm in range(count):
            callers.until_right(answers_between * (storm + 1))
            time.sleep(max(0.0, begun + every_s * storm - time.monotonic()))
            os.kill(web.process.pid, signal.SIGHUP)
        callers.until_right(callers.seen["right"] + 20)
    assert set(callers.seen) <= {"right", "dropped"}
    until(lambda: open_files(running.pid) <= before, "nothing of them is kept", 10)
    assert running.client.status().engines[0].restarts == 0
