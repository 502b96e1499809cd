"""Gunicorn's threaded worker, mended: neither its threads nor its loop nor its stop wait for a client that says nothing."""

from __future__ import annotations

import selectors
import signal
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers import gthread

from web import silence

STOP_S = 2.0
"""How long a worker that stops waits for a connection that has asked nothing yet: as long as for one that has."""


class CandidRequest(Request):  # type: ignore[misc]
    """Says that its connection ends where its body did not come whole; Gunicorn ends it, but announces the contrary."""

    def should_close(self) -> bool:
        """Whether the connection ends with this request."""
        return bool(getattr(self.body, "failed", False) or super().should_close())


def mend(worker: Any) -> None:
    """Change one worker, if it is of the threaded class."""
    if isinstance(worker, gthread.ThreadWorker):
        silence.bound_tls(worker.cfg)
        silence.keep_out_of_the_log()
        RequestParser.mesg_class = CandidRequest
        _wait_in_the_poller(worker)
        _close_in_the_thread(worker)
        _stop_without_the_silent(worker)
        # At a terminal Ctrl-C reaches master and workers, and the master tells these to quit: a handler interrupted by its
        # like would wait for its own thread pool's lock.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_in_the_poller(worker: Any) -> None:
    """Let a new connection take a thread when its first byte is there; Gunicorn lets it have one for 5 s before."""
    enqueue = worker.enqueue_req

    def enqueue_req(conn: Any) -> None:
        if conn.initialized or conn.data_ready:
            enqueue(conn)
            return
        silence.bound(conn.sock)
        # No shorter without keep-alive, which is about connections that have had an answer.
        conn.timeout = time.monotonic() + max(worker.cfg.keepalive, silence.SILENCE_S)
        worker.pending_conns.append(conn)
        readable = partial(worker.on_pending_socket_readable, conn)
        worker.poller.register(conn.sock, selectors.EVENT_READ, readable)

    worker.enqueue_req = enqueue_req


def _close_in_the_thread(worker: Any) -> None:
    """Wait in the request's thread for the client to close too; Gunicorn's loop, which serves all, would for up to 2 s."""
    handle = worker.handle

    def handle_and_close(conn: Any) -> Any:
        kept = handle(conn)
        if not kept:
            with suppress(OSError):
                conn.close(graceful=True)
            conn.close = lambda graceful=False: None
        return kept

    worker.handle = handle_and_close


def _stop_without_the_silent(worker: Any) -> None:
    """End connections that have asked nothing yet soon after the stop begins; Gunicorn waits out its grace time for them."""
    notify = worker.notify

    def notify_all() -> None:
        if not worker.alive:
            soon = time.monotonic() + STOP_S
            for conn in worker.pending_conns:
                conn.timeout = min(conn.timeout, soon)
        notify()

    worker.notify = notify_all
