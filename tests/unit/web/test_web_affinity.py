"""Each worker has a core of its own as long as there are enough, and a worker that comes later takes one that is free."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from web import affinity


def start(server: SimpleNamespace, pid: int) -> int:
    worker = SimpleNamespace()
    affinity.choose(server, worker)
    server.WORKERS[pid] = worker
    return int(getattr(worker, affinity.CORE))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A master that may use three cores, and has a worker from before it was told to give them any."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 2, 4})
    return SimpleNamespace(WORKERS={99: SimpleNamespace()})


def test_cores_are_given_in_turn_and_then_again(server: SimpleNamespace) -> None:
    assert [start(server, pid) for pid in range(7)] == [2, 4, 7, 2, 4, 7, 2]


def test_a_worker_takes_the_place_of_one_that_ended(server: SimpleNamespace) -> None:
    for pid in range(6):
        start(server, pid)
    del server.WORKERS[4]
    assert start(server, 10) == 4


def test_a_threaded_worker_keeps_its_core_and_lets_large_work_leave_it() -> None:
    script = (
        "import os; from gunicorn.workers.gthread import ThreadWorker; from web import affinity, unpinned\n"
        "worker, cores = object.__new__(ThreadWorker), os.sched_getaffinity(0)\n"
        "setattr(worker, affinity.CORE, max(cores)); affinity.keep(worker)\n"
        "assert os.sched_getaffinity(0) == {max(cores)}\n"
        "assert unpinned.unpinned.run(lambda: os.sched_getaffinity(0), unpinned.LARGE) == cores\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_one_thread_of_another_class_keeps_its_core() -> None:
    script = (
        "import os; from types import SimpleNamespace; from web import affinity, unpinned\n"
        "core = min(os.sched_getaffinity(0))\n"
        "affinity.keep(SimpleNamespace(**{affinity.CORE: core}))\n"
        "assert unpinned.unpinned.run(lambda: os.sched_getaffinity(0), unpinned.LARGE) == {core}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
