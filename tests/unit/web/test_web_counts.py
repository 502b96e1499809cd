from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from flask import Flask

from gpu_server.client import Client
from gpu_server.errors import Unavailable
from gpu_server.testing import FakeServer
from gpu_server.wire.monitoring import Report
from web import GPUServer, create_app, serving
from web.counts import OTHER, Counts
from web.settings import Settings


class Daemon:
    """Takes reports, or does not; `count` adds them up as the daemon does, each number once."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lose_answer = False

    def __call__(self, report: Report, timeout_s: float) -> None:
        self.reports.append(report)
        if self.lose_answer:
            raise Unavailable("no answer")

    def count(self, route: str, status: str) -> int:
        once = {report.number: report for report in self.reports}
        return sum(report.routes[route].statuses[status] for report in once.values())


def request(counts: Counts, route: str = "/embed", status: str = "200") -> None:
    counts.end(route, status, counts.begin())


def test_every_route_is_there_before_its_first_request() -> None:
    daemon = Daemon()
    counts = Counts(["/embed", "/rerank"], daemon)
    counts.flush()
    (report,) = daemon.reports
    assert report.routes.keys() == {"/embed", "/rerank", OTHER}
    assert report.routes["/rerank"].statuses["503"] == 0
    assert (report.number, report.in_flight) == (1, 0)


def test_what_was_reported_is_not_reported_again() -> None:
    daemon = Daemon()
    counts = Counts(["/embed"], daemon)
    request(counts)
    request(counts, status="413")
    counts.tokenized("m", 0.001)
    counts.flush()
    request(counts)
    counts.flush()
    assert [report.routes["/embed"].statuses["200"] for report in daemon.reports] == [1, 1]
    assert [sum(report.routes["/embed"].duration.counts) for report in daemon.reports] == [2, 1]
    assert [sum(report.tokenize["m"].counts) for report in daemon.reports] == [1, 0]
    assert daemon.count("/embed", "413") == 1


def test_a_report_without_an_answer_goes_again_as_it_was() -> None:
    daemon = Daemon()
    counts = Counts(["/embed"], daemon)
    request(counts)
    daemon.lose_answer = True
    counts.flush()
    request(counts)
    counts.flush()
    daemon.lose_answer = False
    counts.flush()
    assert [report.number for report in daemon.reports] == [1, 1, 1, 2]
    assert daemon.reports[0] == daemon.reports[2]
    assert daemon.count("/embed", "200") == 2


class Timers:
    """Stands in for threading.Timer: `fire` is the time that has come for all that were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[Callable[[], None]] = []
        monkeypatch.setattr("web.counts.threading.Timer", self.make)

    def make(self, seconds: float, flush: Callable[[], None]) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: self.waiting.append(flush))

    def fire(self) -> None:
        due, self.waiting = self.waiting, []
        for flush in due:
            flush()


def test_reports_go_on_after_the_daemon_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, timers = Daemon(), Timers(monkeypatch)
    counts = Counts(["/embed"], daemon)
    daemon.lose_answer = True
    for _ in range(3):
        request(counts)
        timers.fire()
    daemon.lose_answer = False
    request(counts)
    request(counts)
    assert len(timers.waiting) == 1
    timers.fire()
    assert [report.number for report in daemon.reports] == [1, 1, 1, 1, 2]
    assert daemon.count("/embed", "200") == 5


def test_reports_go_on_after_one_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, timers = Daemon(), Timers(monkeypatch)

    def slow(report: Report, timeout_s: float) -> None:
        daemon(report, timeout_s)
        if report.number == 1:
            request(counts)
            timers.fire()

    counts = Counts(["/embed"], slow)
    request(counts)
    timers.fire()
    request(counts)
    timers.fire()
    assert [report.number for report in daemon.reports] == [1, 2]
    assert daemon.count("/embed", "200") == 3


def test_a_forked_worker_reports_its_own_requests_only() -> None:
    daemon = Daemon()
    counts = Counts(["/embed"], daemon)
    request(counts)
    read, write = os.pipe()
    if not (child := os.fork()):
        daemon.reports.clear()
        request(counts, status="429")
        counts.flush()
        (report,) = daemon.reports
        statuses = report.routes["/embed"].statuses
        os.write(write, json.dumps([report.worker, report.number, statuses["200"], statuses["429"]]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    counts.flush()
    (mine,) = daemon.reports
    with os.fdopen(read), os.fdopen(write):
        worker, number, answered, refused = json.loads(os.read(read, 4096))
    assert worker != mine.worker
    assert (number, answered, refused) == (1, 0, 1)
    assert mine.routes["/embed"].statuses["200"] == 1


def test_requests_in_flight_are_told() -> None:
    daemon = Daemon()
    counts = Counts(["/embed"], daemon)
    begun = counts.begin()
    counts.flush()
    counts.end("/embed", "200", begun)
    counts.flush()
    assert [report.in_flight for report in daemon.reports] == [1, 0]


@pytest.fixture
def counted(client: Client) -> Callable[[Flask], Daemon]:
    """Reports of an app come here."""

    def attach(app: Flask) -> Daemon:
        daemon = Daemon()
        app.extensions["gpu_server"].counts._send = daemon
        return daemon

    return attach


def test_requests_are_counted_by_route_and_status(client: Client, counted: Callable[[Flask], Daemon]) -> None:
    app = create_app(client, Settings(timeout_s=5))
    daemon, http = counted(app), app.test_client()
    http.post("/embed", json={"inputs": "a"})
    http.post("/embed", json={"inputs": []})
    http.post("/models/none/embed", json={"inputs": "a"})
    http.get("/livez")
    http.get("/nowhere")
    app.extensions["gpu_server"].counts.flush()
    assert daemon.count("/embed", "200") == 1
    assert daemon.count("/embed", "400") == 1
    assert daemon.count("/embed", "404") == 1
    assert daemon.count("/livez", "200") == 1
    assert daemon.count(OTHER, "404") == 1
    (times,) = daemon.reports[0].tokenize.values()
    assert sum(times.counts) == 1


def test_routes_of_an_app_of_ones_own_are_not_counted(
    client: Client, counted: Callable[[Flask], Daemon]
) -> None:
    app = Flask("own")
    app.add_url_rule("/mine", view_func=lambda: "mine")
    GPUServer(app, client=client)
    daemon, http = counted(app), app.test_client()
    assert http.get("/mine").text == "mine"
    http.get("/livez")
    app.extensions["gpu_server"].counts.flush()
    (report,) = daemon.reports
    assert (report.in_flight, daemon.count("/livez", "200")) == (0, 1)
    assert sum(sum(about.statuses.values()) for about in report.routes.values()) == 1


def test_metrics_of_this_worker_are_reported_before_they_are_shown(
    client: Client, server: FakeServer
) -> None:
    http = create_app(client, Settings(timeout_s=5)).test_client()
    http.get("/livez")
    assert re.search("^gpu_server_up 1$", http.get("/metrics").text, re.MULTILINE)
    assert server.requests["report"] == 1


def test_an_ending_worker_tells_what_is_left(client: Client, counted: Callable[[Flask], Daemon]) -> None:
    class Worker:
        wsgi = create_app(client, Settings(timeout_s=5))

    daemon = counted(Worker.wsgi)
    Worker.wsgi.test_client().get("/livez")
    serving.worker_exit(None, Worker())
    assert daemon.count("/livez", "200") == 1
    serving.worker_exit(None, object())
