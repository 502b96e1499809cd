"""The cores that an engine takes while it loads beside one that serves: those that nobody else wants."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOADING_NICE = 10
"""About a tenth of what others get where cores are short: a load goes on, however busy they are."""

_THREADS = Path("/proc/self/task")


@contextmanager
def lowered() -> Iterator[None]:
    """Run this thread, and those it makes, behind others; afterwards the whole process as this thread was before.

    Does nothing where the priority could not be raised again (that takes CAP_SYS_NICE or RLIMIT_NICE), nor outside Linux.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if not _can_return(before):
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, before + LOADING_NICE)
    try:
        yield
    finally:
        while behind := _threads_behind(before):
            for thread in behind:
                with suppress(ProcessLookupError):
                    os.setpriority(os.PRIO_PROCESS, thread, before)


def _can_return(before: int) -> bool:
    """Tried on a thread that ends: on Linux each has a priority of its own."""
    done: list[bool] = []

    def attempt() -> None:
        me = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, before + 1)
            os.setpriority(os.PRIO_PROCESS, me, before)
            done.append(True)

    if _THREADS.exists():
        thread = threading.Thread(target=attempt, name="priority")
        thread.start()
        thread.join()
    return bool(done)


def _threads_behind(before: int) -> list[int]:
    """Threads of this process whose priority is lower than it was."""
    behind = []
    for thread in map(int, os.listdir(_THREADS)):
        with suppress(ProcessLookupError):
            if os.getpriority(os.PRIO_PROCESS, thread) > before:
                behind.append(thread)
    return behind
