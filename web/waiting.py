"""Waiting for a reply without waiting for a caller who has gone."""

from __future__ import annotations

import select
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from gpu_server.errors import Cancelled

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

T = TypeVar("T")
FIRST_LOOK_S = 0.1
"""Most answers are there sooner, so most requests never look."""
LOOK_EVERY_S = 0.25
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Patience:
    """Waits as long as the HTTP client of `environ` is there, where Gunicorn gives its socket; else to the end."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ

    def __call__(self, future: Future[T]) -> T:
        """The future's result. Raises Cancelled, and cancels the future, once the client has closed its connection."""
        socket = self._environ.get("gunicorn.socket")
        if socket is None:
            return future.result()
        patience_s = FIRST_LOOK_S
        while True:
            try:
                return future.result(patience_s)
            except TimeoutError:
                if future.done():
                    return future.result()
            if _gone(socket.fileno()):
                future.cancel()
                raise Cancelled("the HTTP client closed its connection")
            patience_s = LOOK_EVERY_S


def _gone(fd: int) -> bool:
    if fd < 0:
        return True
    # What gevent puts in its place waits in its loop, and knows nothing of a peer that hung up.
    monkey = sys.modules.get("gevent.monkey")
    poll = monkey.get_original("select", "poll")() if monkey else select.poll()
    poll.register(fd, select.POLLRDHUP)
    return any(events & _GONE for _, events in poll.poll(0))
