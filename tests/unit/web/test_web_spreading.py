"""A worker with more than its share of the connections parts with one at a time; the others keep theirs."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from web.spreading import LOOK_EVERY_S, SLOT, Spreading


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def worker(kind: type = ThreadWorker, connections: int = 0) -> Any:
    made: Any = object.__new__(kind)
    made.nr_conns = connections
    made.tmp = SimpleNamespace(notify=lambda: None)
    return made


class Master:
    """A master and its workers; each of those looks as if it were in a process of its own."""

    def __init__(self) -> None:
        self.spreading = Spreading()
        self.WORKERS: dict[int, Any] = {}

    def start(self, *connections: int) -> None:
        for count in connections:
            made = worker(connections=count)
            self.spreading.assign(self, made)
            self.WORKERS[len(self.WORKERS)] = made
            self.spreading.follow(made)

    def parting(self, clock: Clock, version: tuple[int, int] = (1, 1)) -> list[int]:
        """The workers that would close a connection now."""
        found = []
        for number, asked in self.WORKERS.items():
            clock.now += LOOK_EVERY_S
            request = SimpleNamespace(version=version, force_close=lambda number=number: found.append(number))
            self.spreading.begin(asked, request)
        return found


@pytest.mark.parametrize(
    ("connections", "parting"),
    [
        ((21, 21, 21), []),
        ((24, 21, 19), []),
        ((35, 21, 7), [0]),
        ((30, 30, 3), [0, 1]),
        ((1, 0, 0), []),
        ((2, 0, 0), [0]),
        ((2, 1, 1), []),
        ((50,), []),
        ((0, 0), []),
    ],
)
def test_who_has_more_than_its_share_parts_with_one(
    clock: Clock, connections: tuple[int, ...], parting: list[int]
) -> None:
    master = Master()
    master.start(*connections)
    assert master.parting(clock) == parting


def test_a_connection_that_other_requests_share_is_kept(clock: Clock) -> None:
    master = Master()
    master.start(9, 0)
    assert master.parting(clock, version=(2, 0)) == []
    assert master.parting(clock, version=(1, 1)) == [0]


def test_at_most_one_in_a_while(clock: Clock) -> None:
    master = Master()
    master.start(9, 0)
    closed: list[str] = []
    request = SimpleNamespace(version=(1, 1), force_close=lambda: closed.append("now"))
    for _ in range(5):
        master.spreading.begin(master.WORKERS[0], request)
    assert len(closed) == 1


def test_a_worker_that_ended_counts_no_more_and_its_slot_is_given_again(clock: Clock) -> None:
    master = Master()
    master.start(4, 0)
    gone = master.WORKERS.pop(1)
    master.spreading.release(gone)
    assert master.parting(clock) == []
    late = worker()
    master.spreading.assign(master, late)
    assert getattr(late, SLOT) == getattr(gone, SLOT)
    assert master.parting(clock) == []
    master.spreading.follow(late)
    master.WORKERS[1] = late
    assert master.parting(clock) == [0]


def test_connections_that_end_without_a_request_count_no_more(clock: Clock) -> None:
    master = Master()
    master.start(9, 21, 21)
    assert master.parting(clock) == [1, 2]
    for idle in (1, 2):
        master.WORKERS[idle].nr_conns = 0
        master.WORKERS[idle].notify()
    assert master.parting(clock) == [0]


def test_other_worker_classes_are_left_alone(clock: Clock) -> None:
    master = Master()
    other = worker(SyncWorker, connections=9)
    master.spreading.assign(master, other)
    master.spreading.follow(other)
    master.spreading.begin(other, SimpleNamespace(version=(1, 1)))
    master.spreading.release(other)
    assert not hasattr(other, SLOT)
