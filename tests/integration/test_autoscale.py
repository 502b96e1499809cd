"""The autoscaler that `web.serving` starts, on a real Gunicorn: workers come with load and go without it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from running_daemon import alive, children, until
from running_gunicorn import RunningGunicorn, UnixConnection

from gpu_server.testing import FakeServer

pytestmark = pytest.mark.slow

APP = """
import time

def app(environ, start_response):
    # Long beside what a caller needs between two requests, even where it has to wait for a core: the worker is never idle.
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""


class Load:
    """Four closed loops over kept connections, until it is told to stop; counts what was not answered."""

    def __init__(self, web: RunningGunicorn) -> None:
        self._web = web
        self._stop = threading.Event()
        self.failed = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        connection = UnixConnection(self._web.path)
        while not self._stop.is_set():
            status, body = self._web.ask("GET", "/", to=connection)
            self.failed += (status, body) != (200, "ok")
        connection.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def workers(web: RunningGunicorn) -> list[int]:
    """Children of the master that were forked and not executed."""
    master = Path(f"/proc/{web.process.pid}/cmdline").read_bytes()
    found = []
    for pid in children(web.process.pid):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes() == master:
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_workers_come_with_load_and_the_autoscaler_ends_with_gunicorn(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(APP)
    options = ("-c", "python:web.serving", "--threads", "4")
    with (
        FakeServer() as daemon,
        RunningGunicorn(
            daemon.endpoint,
            *options,
            workers=1,
            app="busy:app",
            cwd=tmp_path,
            GPU_SERVER_WEB_AUTOSCALE_MAX="3",
        ) as web,
    ):
        until(lambda: len(children(web.process.pid)) == 2, "one worker and the autoscaler")
        (scaler,) = set(children(web.process.pid)) - set(workers(web))
        load = Load(web)
        try:
            # One: two busy workers need more processor than a crowded machine may have left.
            until(lambda: len(workers(web)) >= 2, "another worker")
        finally:
            load.stop()
        assert load.failed == 0
        until(lambda: any("workers are busy" in line for line in web.log), "the reason in the log")
        web.stop()
        until(lambda: not alive(scaler), "the autoscaler's end")
