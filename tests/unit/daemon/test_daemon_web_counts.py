"""Reports of web workers count once each, whatever becomes of the worker or its connection."""

from __future__ import annotations

from gpu_server.daemon.metrics import web as web_counts
from gpu_server.daemon.metrics.web import WebCounts
from gpu_server.wire.monitoring import SECONDS, Buckets, Report, RouteReport, WebStatus

ZEROS = (0,) * (len(SECONDS) + 1)


def report(
    worker: str = "a", number: int = 1, count: int = 1, route: str = "/embed", in_flight: int = 0
) -> Report:
    times = Buckets((count, *ZEROS[1:]), count / 1e5)
    return Report(
        worker=worker * 32,
        number=number,
        in_flight=in_flight,
        routes={route: RouteReport({"200": count}, times)},
        tokenize={"m": times},
    )


def test_reports_add_up_over_workers() -> None:
    counts = WebCounts()
    assert counts.add(b"1", report(count=2))
    assert counts.add(b"2", report("b", count=3))
    assert counts.requests == {("/embed", "200"): 5}
    assert counts.duration["/embed"].counts[0] == counts.tokenize["m"].counts[0] == 5


def test_a_report_sent_again_counts_once_over_any_connection() -> None:
    counts = WebCounts()
    counts.add(b"1", report(count=2))
    counts.gone(b"1")
    assert counts.add(b"2", report(count=2))
    assert counts.add(b"2", report(number=2))
    assert counts.requests["/embed", "200"] == 3


def test_the_counts_of_a_worker_outlive_it_and_its_moment_does_not() -> None:
    counts = WebCounts()
    counts.add(b"1", report(in_flight=3))
    counts.add(b"2", report("b", in_flight=1))
    assert counts.status() == WebStatus(workers=2, in_flight=4)
    counts.gone(b"1")
    assert counts.status() == WebStatus(workers=1, in_flight=1)
    assert counts.requests["/embed", "200"] == 2


def test_a_flood_of_routes_is_refused_whole() -> None:
    counts = WebCounts()
    number = 0
    while counts.add(b"1", report(number=number + 1, route=f"/{number}")):
        number += 1
        assert number <= web_counts.MAX_HISTOGRAMS
    assert len(counts.requests) == len(counts.duration) == web_counts.MAX_HISTOGRAMS
    assert counts.add(b"1", report(number=number + 2, route="/0"))


def test_a_flood_of_statuses_is_refused_whole() -> None:
    counts = WebCounts()
    about = RouteReport({str(status): 1 for status in range(100, 164)}, Buckets(ZEROS, 0.0))
    number = 0
    while counts.add(b"1", Report(worker="a" * 32, number=number + 1, routes={f"/{number}": about})):
        number += 1
    assert (len(counts.requests), len(counts.duration)) == (web_counts.MAX_SERIES, number)


def test_a_flood_of_models_is_refused_and_the_daemons_own_are_timed() -> None:
    counts = WebCounts()
    times = Buckets(ZEROS, 0.0)
    for number in range(1, 4):
        models = {f"{number}/{n}": times for n in range(200)}
        taken = counts.add(b"1", Report(worker="a" * 32, number=number, tokenize=models))
        assert taken == (number == 1)
    assert len(counts.tokenize) == 200 <= web_counts.MAX_HISTOGRAMS
    counts.tokenized("served here").add(times.counts, 0.0)
    assert counts.add(b"1", report(number=5))


def test_routes_without_a_status_are_bounded_too() -> None:
    counts = WebCounts()
    times = Buckets(ZEROS, 0.0)
    for number in range(1, 4):
        routes = {f"/{number}/{n}": RouteReport({}, times) for n in range(web_counts.MAX_HISTOGRAMS)}
        taken = counts.add(b"1", Report(worker="a" * 32, number=number, routes=routes))
        assert taken == (number == 1)
    assert len(counts.duration) == web_counts.MAX_HISTOGRAMS
