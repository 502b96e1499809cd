"""Each worker has a core of its own as long as there are enough, and a worker that comes later takes one that is free."""

from __future__ import annotations

import os
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
