"""Connections spread over Gunicorn's threaded workers, for `web.serving`.

Workers race for a new connection, and the winner keeps it for as long as the client does: of a few hundred, one worker may
have three times as many as another and be the one that all wait for. So a worker with more than its share closes a
connection after the answer, as HTTP lets it, and the client's next one is raced for again.
"""

from __future__ import annotations

import mmap
import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

SLOTS = 1024
LOOK_EVERY_S = 0.02
SLOT = "gpu_server_slot"
"""The attribute of a worker that says where in the table it stands."""


class Spreading:
    """How many connections each worker has, in memory that a master shares with the workers it forks.

    A slot holds one more than that number once its worker takes connections, and 0 before and after.
    """

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, SLOTS * 4)).cast("i")
        self._look_at = 0.0

    def assign(self, server: Any, worker: Any) -> None:
        """Give a worker that is about to be forked a slot, if its class can be asked for its connections."""
        taken = {getattr(other, SLOT, None) for other in server.WORKERS.values()}
        slot = next((i for i in range(SLOTS) if i not in taken), None)
        if slot is not None and isinstance(worker, ThreadWorker):
            self._counts[slot] = 0
            setattr(worker, SLOT, slot)

    def follow(self, worker: Any) -> None:
        """Keep telling the others how many connections a worker has; its loop notifies the master each time round.

        Only the loop knows of connections that end between requests: a worker whose clients have left has no requests.
        """
        if (slot := getattr(worker, SLOT, None)) is None:
            return
        notify = worker.notify

        def notify_all() -> None:
            self._counts[slot] = worker.nr_conns + 1
            notify()

        worker.notify = notify_all
        notify_all()

    def release(self, worker: Any) -> None:
        """A worker has ended."""
        if (slot := getattr(worker, SLOT, None)) is not None:
            self._counts[slot] = 0

    def begin(self, worker: Any, req: Any) -> None:
        """Let a connection end with this request where the worker has too many; one of HTTP/2 has other requests on it."""
        if req.version < (2, 0) and self._crowded(worker):
            req.force_close()

    def _crowded(self, worker: Any) -> bool:
        """Whether a worker should part with a connection; looks 50 times a second, and else says no."""
        now = time.monotonic()
        if now < self._look_at or not hasattr(worker, SLOT):
            return False
        self._look_at = now + LOOK_EVERY_S
        counts = [count - 1 for count in self._counts.tolist() if count]
        mean = sum(counts) / len(counts)
        return bool(worker.nr_conns > mean + max(1.0, mean / 8))
