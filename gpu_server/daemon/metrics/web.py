"""What web workers have reported, added up: each report counts once, whichever process or connection it came over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Set
from typing import Any

from gpu_server.daemon.metrics.histogram import Histogram
from gpu_server.daemon.metrics.text import Series
from gpu_server.wire.monitoring import SECONDS, Report, WebStatus

MAX_SERIES = 2048
"""Pairs of a route and a status."""
MAX_HISTOGRAMS = 256
"""Routes, and models, that have one: it is 21 lines of what is scraped."""
MAX_WORKERS = 8192


class WebCounts:
    """Totals over all web workers there ever were, and the in-flight requests of those still connected."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}
        self.duration: dict[str, Histogram] = {}
        self.tokenize: dict[str, Histogram] = {}
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._connected: dict[bytes, int] = {}

    def add(self, peer: bytes, report: Report) -> bool:
        """Count a report, unless it was counted before; False if it would make too many series."""
        self._connected[peer] = report.in_flight
        if report.number <= self._numbers.get(report.worker, 0):
            return True
        if not self._has_room(report):
            return False
        self._numbers[report.worker] = report.number
        self._numbers.move_to_end(report.worker)
        if len(self._numbers) > MAX_WORKERS:
            self._numbers.popitem(last=False)
        for route, about in report.routes.items():
            for status, count in about.statuses.items():
                self.requests[route, status] = self.requests.get((route, status), 0) + count
            histogram = self.duration.setdefault(route, Histogram(SECONDS))
            histogram.add(about.duration.counts, about.duration.total)
        for model, buckets in report.tokenize.items():
            self.tokenized(model).add(buckets.counts, buckets.total)
        return True

    def gone(self, peer: bytes) -> None:
        """Forget what a lost connection's worker has in flight."""
        self._connected.pop(peer, None)

    def status(self) -> WebStatus:
        """The workers of this moment."""
        return WebStatus(workers=len(self._connected), in_flight=sum(self._connected.values()))

    def tokenized(self, model: str) -> Histogram:
        """The tokenising times of a model, made on first use."""
        return self.tokenize.setdefault(model, Histogram(SECONDS))

    def series(self) -> Iterator[tuple[str, Series]]:
        """Every family of the web workers, by its name without the prefix."""
        yield "http_requests_total", self.requests
        yield "http_request_duration_seconds", {(route,): h for route, h in self.duration.items()}
        now = self.status()
        yield "http_in_flight", {(): now.in_flight}
        yield "web_workers", {(): now.workers}

    def _has_room(self, report: Report) -> bool:
        new = {(route, status) for route, about in report.routes.items() for status in about.statuses}
        return (
            _fits(new, self.requests, MAX_SERIES)
            and _fits(report.routes.keys(), self.duration, MAX_HISTOGRAMS)
            and _fits(report.tokenize.keys(), self.tokenize, MAX_HISTOGRAMS)
        )


def _fits(reported: Set[Hashable], known: Mapping[Any, object], most: int) -> bool:
    """Whether at most so many are known with those reported; where all are known already, always."""
    new = len(reported - known.keys())
    return not new or len(known) + new <= most
