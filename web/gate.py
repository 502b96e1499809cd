"""The bound on requests that one worker has in flight."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gpu_server.errors import Overloaded


class Gate:
    """Lets at most `limit` requests in at a time, and turns the next away at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = threading.Semaphore(limit)

    @contextmanager
    def pass_one(self) -> Iterator[None]:
        """Hold one place. Raises Overloaded when none is free."""
        if not self._free.acquire(blocking=False):
            raise Overloaded(
                "Model is overloaded", {"limit": "max_concurrent_requests", "retry_after_ms": 1000}
            )
        try:
            yield
        finally:
            self._free.release()
