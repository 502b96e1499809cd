"""A core of its own for each worker, for `web.serving`.

One thread of a worker runs Python at a time; the hand-overs from one to the next cost less where they do not also go from
one core to another.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from web.unpinned import unpinned

CORE = "gpu_server_core"
"""The attribute of a worker that holds its core, in the master, which alone knows those of all."""


def choose(server: Any, worker: Any) -> None:
    """Give a worker that is about to be forked the core that has the fewest."""
    taken = Counter(getattr(other, CORE, None) for other in server.WORKERS.values())
    setattr(worker, CORE, min(sorted(os.sched_getaffinity(0)), key=lambda core: taken[core]))


def keep(worker: Any) -> None:
    """Keep this process, and all threads that it starts from now on, to the worker's core, but for the unpinned.

    The threads of other worker classes than Gunicorn's threaded one may be no threads but parts of one.
    """
    if isinstance(worker, ThreadWorker):
        unpinned.open(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {getattr(worker, CORE)})
