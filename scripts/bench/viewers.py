"""What viewers of the dashboard cost the requests beside them: latencies with and without, in turn, in one run.

    .venv/bin/python scripts/bench/viewers.py [--viewers 5] [--rounds 8] [--seconds 6] [--share 0.5]

Starts a daemon with a model that costs nothing and Gunicorn with the stock frontend. The load is an open loop at a share of
what both can do; each viewer asks once a second for what the page asks for. A round is one window with and one without.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from autoscale import HERE, Site

from gpu_server.bench.plan import Plan
from gpu_server.bench.report import Outcome
from gpu_server.bench.run import bench

EVERY_S = 1.0
BODY = '{"inputs":{"x":[21]}}'


class Viewer:
    """One open page: all points at first, then those that are new."""

    def __init__(self, url: str, delay_s: float) -> None:
        self.asked = 0
        self._url = url
        self._delay_s = delay_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        since = 0
        self._end.wait(self._delay_s)
        while not self._end.wait(EVERY_S):
            with urllib.request.urlopen(f"{self._url}dashboard/data?since={since}", timeout=10) as answer:
                points = json.load(answer)["points"]
            since = points[-1]["number"] if points else since
            self.asked += 1

    def close(self) -> None:
        """Close the page."""
        self._end.set()
        self._thread.join()


@contextmanager
def viewers(url: str, count: int) -> Iterator[list[Viewer]]:
    """That many, not in step."""
    opened = [Viewer(url, EVERY_S * number / max(1, count)) for number in range(count)]
    try:
        yield opened
    finally:
        for viewer in opened:
            viewer.close()


def window(site: Site, url: str, rate: float, seconds: float, count: int) -> tuple[Outcome, int]:
    """Latencies of one window, and how often the viewers asked."""
    plan: Plan = site.plan(url + "v1/models/Double/infer", rate, seconds)
    with viewers(url, count) as opened:
        made = asyncio.run(bench(plan, lambda text, share: None))
    return made.latency, sum(viewer.asked for viewer in opened)


def show(name: str, outcomes: list[Outcome]) -> None:
    p50, p99 = (statistics.median(getattr(o, key) for o in outcomes) * 1e3 for key in ("p50_s", "p99_s"))
    print(f"{name:16} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   (medians of {len(outcomes)} windows)")


@click.command()
@click.option("--viewers", "count", default=5, show_default=True, help="Open pages.")
@click.option("--rounds", default=8, show_default=True, help="Windows of each kind.")
@click.option("--seconds", default=6.0, show_default=True, help="Seconds of a window.")
@click.option("--share", default=0.5, show_default=True, help="Load, as a share of the highest rate.")
@click.option("--workers", default=2, show_default=True, help="Gunicorn workers.")
def main(count: int, rounds: int, seconds: float, share: float, workers: int) -> None:
    """Compare windows with viewers and without."""
    with tempfile.TemporaryDirectory(prefix="gs-view-") as folder:
        site = Site(Path(folder), cpu_ms=0, most=workers)
        site.body.write_text(BODY)
        site.log.touch()
        seen: list[Outcome] = []
        alone: list[Outcome] = []
        asked = 0
        with site.daemon(), site.gunicorn(workers, "web:app", HERE.parents[1]) as (url, _):
            highest = asyncio.run(
                bench(site.plan(url + "v1/models/Double/infer", 0.0, seconds), lambda *_: None)
            )
            rate = highest.requests_per_s * share
            for number in range(rounds):
                # The order changes: what grows or tires over the run touches both alike.
                for kind in (count, 0) if number % 2 else (0, count):
                    latency, questions = window(site, url, rate, seconds, kind)
                    (seen if kind else alone).append(latency)
                    asked += questions
    print(f"{rate:.0f} requests/s, {share:.0%} of the highest; {count} viewers asked {asked} times")
    show("without viewers", alone)
    show(f"with {count} viewers", seen)
    ratios = sorted(a.p99_s / b.p99_s for a, b in zip(seen, alone, strict=True))
    print(
        f"p99 with over without, by round: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
