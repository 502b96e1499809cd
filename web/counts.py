"""What this worker process has served, told to the daemon about once a second: its /metrics covers every worker."""

from __future__ import annotations

import os
import threading
import time
import uuid
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gpu_server.client import Client
from gpu_server.errors import RemoteError
from gpu_server.wire import Tensor
from gpu_server.wire.monitoring import SECONDS, Buckets, Report, RouteReport, to_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

EVERY_S = 1.0
SEND_TIMEOUT_S = 2.0
ROUTE = "gpu_server.route"
"""Where the route that serves a request notes its name."""
OTHER = "other"
_STATUSES = ("200", "422", "429", "500", "503", "504")
"""Those of each route that are there before they happen."""


class _Times:
    """Latencies by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def take(self) -> Buckets:
        """What was added since the last time."""
        taken = Buckets(tuple(self.counts), self.total)
        self.__init__()  # type: ignore[misc]
        return taken


class Counts:
    """Requests by route and status, with their times, of this process.

    A report that got no answer goes again, unchanged and under its number, before the next: the daemon counts it once.
    send: hands a report to the daemon within some seconds, or raises RemoteError.
    """

    def __init__(self, routes: Iterable[str], send: Callable[[Report, float], None]) -> None:
        self._send = send
        self._names = tuple(dict.fromkeys([*routes, OTHER]))
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """Count from nothing, as another process: in a forked child all so far is its parent's to report."""
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._worker = uuid.uuid4().hex
        self._number = 0
        self._unanswered: Report | None = None
        self._timed = False
        self._in_flight = 0
        self._statuses = {name: dict.fromkeys(_STATUSES, 0) for name in self._names}
        self._durations = {name: _Times() for name in self._names}
        self._tokenize: dict[str, _Times] = {}

    def begin(self) -> float:
        """Count a request in; returns when that was."""
        with self._lock:
            self._in_flight += 1
        return time.monotonic()

    def end(self, route: str, status: str, begun: float) -> None:
        """Count a request out; `route` "" is one that is none of ours."""
        seconds = time.monotonic() - begun
        with self._lock:
            self._in_flight -= 1
            if not route:
                return
            statuses = self._statuses[route]
            statuses[status] = statuses.get(status, 0) + 1
            self._durations[route].add(seconds)
            start, self._timed = not self._timed, True
        if start:
            timer = threading.Timer(EVERY_S, self.flush)
            timer.daemon = True
            timer.start()

    def tokenized(self, model: str, seconds: float) -> None:
        """Count the tokenising of one request's texts."""
        with self._lock:
            self._tokenize.setdefault(model, _Times()).add(seconds)

    def flush(self, timeout_s: float = SEND_TIMEOUT_S) -> None:
        """Report what has not been reported; if nobody takes it, it is kept for the next time."""
        # First, or a flush that ends early would leave no request to start the next timer.
        with self._lock:
            self._timed = False
        if not self._sending.acquire(blocking=False):
            return
        try:
            if self._unanswered is not None:
                self._send(self._unanswered, timeout_s)
            self._unanswered = self._take()
            self._send(self._unanswered, timeout_s)
            self._unanswered = None
        except RemoteError:
            return
        finally:
            self._sending.release()

    def _take(self) -> Report:
        with self._lock:
            self._number += 1
            return Report(
                worker=self._worker,
                number=self._number,
                in_flight=self._in_flight,
                routes={name: self._route(name) for name in self._statuses},
                tokenize={model: times.take() for model, times in self._tokenize.items()},
            )

    def _route(self, name: str) -> RouteReport:
        counted = self._statuses[name]
        self._statuses[name] = dict.fromkeys(counted, 0)
        return RouteReport(counted, self._durations[name].take())


_all: weakref.WeakSet[Counts] = weakref.WeakSet()


def _begin_anew() -> None:
    for counts in _all:
        counts.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)


class CountedApp:
    """A WSGI app whose requests are counted under the route that has noted itself in their environment.

    rest: whether the others are counted too, as `OTHER`.
    """

    def __init__(self, inner: WSGIApplication, counts: Counts, rest: bool) -> None:
        self._inner = inner
        self._counts = counts
        self._rest = OTHER if rest else ""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status = "500"

        def start(line: str, headers: list[tuple[str, str]], *rest: object) -> Callable[[bytes], object]:
            nonlocal status
            status = line[:3]
            return start_response(line, headers, *rest)  # type: ignore[arg-type]

        begun = self._counts.begin()
        try:
            return self._inner(environ, start)
        finally:
            self._counts.end(environ.get(ROUTE, self._rest), status, begun)


def reporter(client: Client) -> Callable[[Report, float], None]:
    """Sends reports with the client that the app's requests go over."""

    def send(report: Report, timeout_s: float) -> None:
        client.request({"report": Tensor.from_strings([to_json(report)])}, op="report", timeout_s=timeout_s)

    return send
