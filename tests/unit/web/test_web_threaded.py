"""A new connection of a threaded worker waits in the poller, whatever the keep-alive and whenever a stop begins."""

from __future__ import annotations

import logging
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn, ThreadWorker

from web import silence, threaded

MakeWorker = Callable[..., Any]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Make a mended worker whose loop does not run; `worker(keepalive=0)`."""
    made: list[Any] = []
    interrupt = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(RequestParser, "mesg_class", RequestParser.mesg_class)

    def make(**settings: Any) -> Any:
        config = Config()
        for name, value in ({"worker_class": "gthread"} | settings).items():
            config.set(name, value)
        one = ThreadWorker(1, 0, [], None, 30, config, logging.getLogger("test"))
        one.tpool, one.poller = one.get_thread_pool(), selectors.DefaultSelector()
        one.method_queue.init()
        made.append(one)
        threaded.mend(one)
        return one

    yield make
    signal.signal(signal.SIGINT, interrupt)
    silence.log.filters.clear()
    for one in made:
        one.tpool.shutdown()
        one.poller.close()
        one.method_queue.close()
        one.tmp.close()


class Stopping(socket.socket):
    """A connection during whose acceptance another thread begins the worker's stop."""

    worker: Any

    def setsockopt(self, *args: Any) -> None:
        super().setsockopt(*args)
        self.worker.alive = False


def accepted(worker: Any, kind: type[socket.socket] = socket.socket) -> tuple[Any, socket.socket]:
    """A connection that a worker has just accepted, and its client, which has asked already."""
    server, client = socket.socketpair()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    sock = kind(fileno=server.detach())
    if isinstance(sock, Stopping):
        sock.worker = worker
    conn = TConn(worker.cfg, sock, "", "")
    worker.nr_conns += 1
    worker.enqueue_req(conn)
    return conn, client


@pytest.mark.parametrize("keepalive", [0, 75])
def test_a_new_connection_has_time_to_ask_whatever_the_keep_alive(worker: MakeWorker, keepalive: int) -> None:
    one = worker(keepalive=keepalive)
    conn, client = accepted(one)
    with conn.sock, client:
        one.murder_pending()
        assert list(one.pending_conns) == [conn]
        assert one.poller.get_key(conn.sock).data


def test_a_stop_that_begins_meanwhile_resets_nobody(worker: MakeWorker) -> None:
    one = worker()
    conn, client = accepted(one, Stopping)
    with conn.sock, client:
        assert not one.alive
        assert list(one.pending_conns) == [conn]
        one.notify()
        one.murder_pending()
        assert list(one.pending_conns) == [conn]
