"""Threads free to run on any core, for the much tokenising of a worker that is kept to one.

The tokenizers run outside of Python's lock, so that they gain from other cores what Python itself cannot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LARGE = 1024
"""Characters from which the hand-over, some 0.1 ms, is small beside the tokenising."""

T = TypeVar("T")


class Unpinned:
    """Runs large work in threads of its own once it has been opened, and where it is called until then."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def open(self, cores: Set[int]) -> None:
        """Let threads run on these cores, as many at a time as there are."""
        self._threads = ThreadPoolExecutor(len(cores), "unpinned", os.sched_setaffinity, (0, cores))

    def run(self, work: Callable[[], T], characters: int) -> T:
        """What `work`, which is about so many characters, returns or raises."""
        if self._threads is None or characters < LARGE:
            return work()
        return self._threads.submit(work).result()


unpinned = Unpinned()
"""Those of this process."""
