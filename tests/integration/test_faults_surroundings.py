"""Faults around the daemon: a low limit of open files, a full disk for logs, a caller that gives up first."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import zmq
from fault_world import answers, answers_now, open_files
from metronome import Metronome
from running_daemon import MODELS, StartDaemon, clean_environment, until
from running_gunicorn import CLASSES, RunningGunicorn

from gpu_server.client import Client

pytestmark = pytest.mark.slow


def test_more_connections_than_a_shell_allows_are_served(daemon: StartDaemon) -> None:
    """Pass mark: a soft limit is no limit; the daemon raises it to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = daemon("served_models:Numbers")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    running.wait_ready()
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        # Each takes two descriptors here too.
        for _ in range(min(500, soft // 2 - 100)):
            stack.enter_context(running.raw_socket(context))
        until(lambda: open_files(running.pid) > 300, "they are open", 20)
        assert all(answers(running.client, value) for value in range(50))
        with Client(running.endpoint, timeout_s=10) as late:
            assert answers(late, 5)


def test_a_full_disk_for_logs_fails_no_request(own_endpoint: str) -> None:
    """Pass mark: no request fails while nothing can be written, and an engine that is killed is replaced."""
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_server", "start", "served_models:Numbers", "--log-level", "debug"],
            cwd=MODELS, env=clean_environment(GPU_SERVER_ENDPOINT=own_endpoint), stderr=full, stdout=full,
        )  # fmt: skip
    try:
        with Client(own_endpoint, timeout_s=10) as client:
            until(lambda: answers_now(client), "it serves")
            assert all(answers(client, value) for value in range(50))
            engine = client.status().engines[0].pid
            os.kill(engine, 9)
            until(lambda: answers_now(client), "it recovers", 30)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_a_silent_daemon_is_a_504_before_gunicorn_would_kill_the_worker(
    silent: str, worker_class: str
) -> None:
    """Pass mark: 504 within a second after the web tier's own time-out (2 s), and the worker lives.

    Gunicorn's is long enough for a worker that the machine stalls; with both as shipped: `test_long_marks.py`.
    """
    options = (*CLASSES[worker_class], "--timeout", "8")
    with (
        Metronome(0.02, every_core=True) as clock,
        RunningGunicorn(silent, *options, workers=1, GPU_SERVER_WEB_TIMEOUT_S="2") as web,
    ):
        assert web.ask("GET", "/livez")[0] == 200
        workers = web.workers()
        begun = time.monotonic()
        status, body = web.ask("POST", "/embed", {"inputs": "a"})
        assert (status, "error" in body) == (504, True)
        assert time.monotonic() - begun > 1.9
        assert clock.ran_s(begun) < 3
        assert web.ask("GET", "/livez")[0] == 200
        assert web.workers() == workers
