"""Large work of a worker that is kept to one core runs on any; all other work where it is called."""

from __future__ import annotations

import os
import threading

import pytest

from web.unpinned import LARGE, Unpinned


@pytest.fixture
def unpinned() -> Unpinned:
    """Threads as a worker opens them, on the cores that the tests have."""
    threads = Unpinned()
    threads.open(os.sched_getaffinity(0))
    return threads


def test_large_work_leaves_the_core_of_its_caller(unpinned: Unpinned) -> None:
    cores = os.sched_getaffinity(0)
    seen: list[tuple[set[int], set[int], set[int]]] = []

    def request() -> None:
        os.sched_setaffinity(0, {min(cores)})
        large = unpinned.run(lambda: os.sched_getaffinity(0), LARGE)
        small = unpinned.run(lambda: os.sched_getaffinity(0), LARGE - 1)
        seen.append((large, small, os.sched_getaffinity(0)))

    thread = threading.Thread(target=request)
    thread.start()
    thread.join(10)
    assert seen == [(cores, {min(cores)}, {min(cores)})]


def test_without_threads_work_runs_where_it_is_called() -> None:
    assert Unpinned().run(threading.get_ident, LARGE) == threading.get_ident()


def test_what_the_work_raises_reaches_its_caller(unpinned: Unpinned) -> None:
    with pytest.raises(ZeroDivisionError):
        unpinned.run(lambda: 1 // 0, LARGE)
