"""The daemon is killed under load: web workers say so at once, time and again, and recover by themselves."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time

import pytest
from metronome import Metronome
from running_daemon import StartDaemon, until
from running_gunicorn import CLASSES, RunningGunicorn, UnixConnection

pytestmark = pytest.mark.slow
DOWN_S = 1.5
"""For so long after the kill every request is looked at; the first second is that of the lost connection."""


def post(path: str, clock: Metronome) -> tuple[int, str | None, float]:
    """Status, Retry-After and seconds of one inference, less those in which the machine stalled."""
    connection = UnixConnection(path)
    started = time.monotonic()
    connection.request(
        "POST", "/v1/models/Numbers/infer", json.dumps({"inputs": {"x": [3]}}), {"content-type": "application/json"}
    )  # fmt: skip
    answer = connection.getresponse()
    answer.read()
    seconds = clock.ran_s(started)
    connection.close()
    return answer.status, answer.getheader("retry-after"), seconds


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_every_new_request_is_refused_at_once_until_it_is_back(
    daemon: StartDaemon, own_endpoint: str, worker_class: str
) -> None:
    running = daemon("served_models:Numbers").wait_ready()
    with (
        Metronome(0.02, every_core=True) as clock,
        RunningGunicorn(own_endpoint, *CLASSES[worker_class], workers=1) as web,
    ):
        assert post(web.path, clock)[0] == 200
        under_load: list[int] = []
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                under_load.append(post(web.path, clock)[0])

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(under_load) > 20, "the load", 20)
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait(10)
        end = time.monotonic() + DOWN_S
        refused = []
        # After a stall these are few, and then the median would be the slowest.
        while time.monotonic() < end or len(refused) < 20:
            refused.append(post(web.path, clock))
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert {(status, retry is not None) for status, retry, _ in refused} == {(503, True)}
        assert statistics.median(seconds for _, _, seconds in refused) < 0.05
        assert max(seconds for _, _, seconds in refused) < 0.5
        assert set(under_load) == {200, 503}
        daemon("served_models:Numbers").wait_ready()
        until(lambda: post(web.path, clock)[0] == 200, "answers again", 20)
