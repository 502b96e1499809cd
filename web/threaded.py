"""Gunicorn's threaded worker, mended: neither its threads nor its loop nor its stop wait for a client that says nothing."""

from __future__ import annotations

import signal
import socket
import struct
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from gunicorn.workers import gthread

SILENCE_S = 15
"""How long a client may be silent in the middle of a request before its connection ends."""
STOP_S = 2.0
"""How long a worker that stops waits for a connection that has asked nothing yet: as long as for one that has."""


def mend(worker: Any) -> None:
    """Change one worker, if it is of the threaded class."""
    if isinstance(worker, gthread.ThreadWorker):
        _wait_in_the_poller(worker)
        _close_in_the_thread(worker)
        _stop_without_the_silent(worker)
        # At a terminal Ctrl-C reaches master and workers, and the master tells these to quit: a handler interrupted by its
        # like would wait for its own thread pool's lock.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_in_the_poller(worker: Any) -> None:
    """Let a new connection take a thread when its first byte is there; Gunicorn lets it have one for 5 s before."""
    enqueue = worker.enqueue_req
    later: Future[object] = Future()
    later.set_result(gthread._DEFER)

    def enqueue_req(conn: Any) -> None:
        if conn.initialized or conn.data_ready or not worker.alive:
            enqueue(conn)
            return
        # Of the socket itself: reads of a whole request have no other bound.
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", SILENCE_S, 0))
        worker.finish_request(conn, later)

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
