"""The requests of a call that needs several: a few outstanding at a time, their replies in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from gpu_server.connection import Reply
from gpu_server.wire import Tensors

AHEAD = 4
"""Requests outstanding at once: the server always has the next at hand, and the queue is not one caller's."""

Waits = Generator[Future[Reply], Any, None]


class Sending:
    """Sends parts by `submit`. A context manager: what is outstanding when it ends, as after an error, is cancelled."""

    def __init__(self, submit: Callable[[Tensors], Future[Reply]]) -> None:
        self.replies: list[Reply] = []
        self._submit = submit
        self._pending: deque[Future[Reply]] = deque()

    def add(self, part: Tensors) -> Waits:
        """Send a part, once fewer than `AHEAD` are outstanding. Raises what those, or `submit`, raise."""
        while len(self._pending) >= AHEAD:
            yield from self._next()
        self._pending.append(self._submit(part))

    def finish(self) -> Waits:
        """Wait until `replies` has the reply of every part. Raises what they raise."""
        while self._pending:
            yield from self._next()

    def _next(self) -> Waits:
        self.replies.append((yield self._pending[0]))
        self._pending.popleft()

    def __enter__(self) -> Sending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()
