"""Workers on a ramp of load: every fixed number of them at the peak, then the autoscaler up the ramp and down again.

    .venv/bin/python scripts/bench/autoscale.py [--most 2] [--fixed 1,2] [--cpu-ms 10] [--step-s 12] [--json FILE]
    .venv/bin/python scripts/bench/autoscale.py --most 12 --fixed 12 --cpu-ms 0 --wait-ms 160 --threads 4

Starts a daemon with a model that costs nothing, and `gunicorn -c python:web.serving` with an app that burns CPU for every
request, or waits: that fills a worker's threads and no core, so the machine may have fewer cores than there are workers. The
load comes from the modules of `gpu-server bench http`: an open loop at shares of what --most workers do, a closed one at the
peak.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gpu_server import Client
from gpu_server.autoscale.processes import Master
from gpu_server.bench.plan import Plan
from gpu_server.bench.report import Report
from gpu_server.bench.run import bench
from gpu_server.errors import RemoteError

HERE = Path(__file__).parent
SITE = HERE / "autoscale_site"
PATH = "work"
CONNECTIONS_A_WORKER = 8
WAIT_S = 60.0
SETTLE_S = 7.0
"""How long a peak is held before it is measured, for each doubling of the workers that it takes."""
SPREAD_S = 10.0
"""The same for workers that are there: new connections may begin at one, and move as their requests are answered."""
LOOK_S = 0.5
SHARES = (0.05, 0.15, 0.3, 0.0, 0.15, 0.025, 0.025)
"""Of the rate of the most workers, one step each; 0 is a closed loop, which is the peak."""


class Site:
    """A daemon and a Gunicorn, each in a process of its own, that end with this one."""

    def __init__(
        self, folder: Path, cpu_ms: float, most: int, *, wait_ms: float = 0.0, threads: int = 16
    ) -> None:
        self.folder = folder
        self.body = folder / "body.json"
        self.body.write_text('{"inputs":"x"}')
        self.log = folder / "log"
        self._most = most
        self._threads = threads
        self._env = os.environ | {
            "GPU_SERVER_ENDPOINT": f"ipc://{folder}/s",
            "GPU_SERVER_THREADS": "1",
            "GPU_SERVER_WEB_THREADS": str(threads),
            "BENCH_CPU_MS": str(cpu_ms),
            "BENCH_WAIT_MS": str(wait_ms),
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        }

    @contextmanager
    def running(self, *command: str, folder: Path = SITE) -> Iterator[subprocess.Popen[bytes]]:
        """A process, its output in the log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=folder, env=self._env, stderr=log
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(WAIT_S)

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """The daemon, once it serves."""
        with self.running("gpu_server", "start", "double:Double"):
            with Client(self._env["GPU_SERVER_ENDPOINT"]) as client:
                give_up = time.monotonic() + WAIT_S
                while not _ready(client) and time.monotonic() < give_up:
                    time.sleep(0.1)
            yield

    @contextmanager
    def gunicorn(
        self, workers: int, app: str = "frontend:app", folder: Path = SITE
    ) -> Iterator[tuple[str, Master]]:
        """Gunicorn with that many workers of an app in a folder: its URL and its master."""
        port = self.folder / "port"
        options = ("-c", "python:web.serving", "-b", "127.0.0.1:0", "-w", str(workers))
        seen = self.log.stat().st_size
        with self.running("gunicorn", *options, app, folder=folder) as process:
            give_up = time.monotonic() + WAIT_S
            while not (found := re.findall(rb"Listening at: (http://[\d.:]+)", self.log.read_bytes()[seen:])):
                assert time.monotonic() < give_up, f"Gunicorn did not start: {self.log.read_text()}"
                time.sleep(0.05)
            port.write_bytes(found[0])
            yield found[0].decode() + "/", Master(process.pid)

    @contextmanager
    def autoscaler(self, master: Master, remove_after_s: float) -> Iterator[None]:
        """The autoscaler as `web.serving` starts it, but for the patience of removals."""
        bounds = ("--min", "1", "--max", str(self._most), "--threads", str(self._threads))
        patience = ("--remove-after-s", str(remove_after_s))
        with self.running("gpu_server", "autoscale", "--pid", str(master.pid), *bounds, *patience):
            yield

    def plan(self, url: str, rate: float, seconds: float, warm_up_s: float = 1.0) -> Plan:
        """One step of load."""
        return Plan(
            url=url,
            connections=CONNECTIONS_A_WORKER * self._most,
            rate=rate,
            duration_s=seconds,
            warm_up_s=warm_up_s,
            body_file=str(self.body),
        )


def _ready(client: Client) -> bool:
    try:
        return client.status().state == "ready"
    except RemoteError:
        return False


async def step(plan: Plan, master: Master) -> tuple[Report, list[int]]:
    """A step's report, and the workers there were each second."""
    workers: list[int] = []

    async def count() -> None:
        while True:
            workers.append(len(master.active_s()))
            await asyncio.sleep(1.0)

    counting = asyncio.ensure_future(count())
    try:
        return await bench(plan, lambda text, share: None), workers
    finally:
        counting.cancel()


def row(at: float, made: Report, workers: list[int], offered: float) -> dict[str, Any]:
    errors = sum(outcome.requests for name, outcome in made.outcomes.items() if not name.startswith("2"))
    return {
        "at_s": round(at),
        "offered": round(offered),
        "answered": round(made.requests_per_s, 1),
        "p50_ms": round(made.latency.p50_s * 1e3, 1),
        "p99_ms": round(made.latency.p99_s * 1e3, 1),
        "workers": workers,
        "errors": errors,
    }


def wait_for_idle(master: Master, workers: int) -> None:
    """Return once that many workers have started."""
    give_up = time.monotonic() + WAIT_S
    used: dict[int, float] = {}
    while time.monotonic() < give_up:
        before, used = used, master.active_s()
        if len(before) == workers and sum(used.values()) - sum(before.values()) < LOOK_S / 10:
            return
        time.sleep(LOOK_S)
    raise TimeoutError(f"{workers} workers did not start")


def fixed(site: Site, numbers: list[int], seconds: float) -> dict[int, float]:
    """Requests a second at the peak, for each number of workers."""
    rates = {}
    for workers in numbers:
        with site.gunicorn(workers) as (url, master):
            wait_for_idle(master, workers)
            made, _ = asyncio.run(step(site.plan(url + PATH, 0.0, seconds, SPREAD_S), master))
        rates[workers] = made.requests_per_s
        click.echo(
            f"fixed {workers}: {made.requests_per_s:6.1f} requests/s, p99 {made.latency.p99_s * 1e3:.0f} ms"
        )
    return rates


def ramp(site: Site, peak: float, seconds: float, settle_s: float) -> list[dict[str, Any]]:
    """The steps under the autoscaler; the peak is held for `settle_s` before it is measured, on the same connections."""
    rows = []
    with site.gunicorn(1) as (url, master), site.autoscaler(master, seconds):
        begun = time.monotonic()
        for share in SHARES:
            at = time.monotonic() - begun
            plan = site.plan(url + PATH, peak * share, seconds, 1.0 if share else settle_s)
            made, workers = asyncio.run(step(plan, master))
            rows.append(row(at, made, workers, peak * share))
            click.echo(" ".join(f"{name}={value}" for name, value in rows[-1].items()))
    return rows


def plot(rows: list[dict[str, Any]], best: float) -> str:
    """A line a step: load as a bar, workers as digits, the latency beside them."""
    lines = [f"{'at':>5}  {'answered':<32}  {'p99':>7}  workers, each second"]
    for one in rows:
        bar = "█" * max(1, round(30 * one["answered"] / best))
        digits = ("" if max(one["workers"]) < 10 else " ").join(map(str, one["workers"]))
        lines.append(
            f"{one['at_s']:>4}s  {bar:<30} {one['answered']:>6.0f}  {one['p99_ms']:>5.0f} ms  {digits}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--most", default=len(os.sched_getaffinity(0)), show_default=True, help="Most workers.")
@click.option("--fixed", "numbers", help="Fixed numbers of workers to compare with.  [default: 1 to --most]")
@click.option("--cpu-ms", default=10.0, show_default=True, help="CPU time of one request in the frontend.")
@click.option(
    "--wait-ms", default=0.0, show_default=True, help="Time that one request waits there without CPU."
)
@click.option("--threads", default=64, show_default=True, help="Threads of a worker.")
@click.option("--step-s", "seconds", default=12.0, show_default=True, help="Seconds of each step.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    most: int,
    numbers: str | None,
    cpu_ms: float,
    wait_ms: float,
    threads: int,
    seconds: float,
    path: Path | None,
) -> None:
    """Compare the autoscaler with fixed numbers of workers."""
    compared = sorted({*map(int, numbers.split(",")), most}) if numbers else list(range(1, most + 1))
    settle_s = max(seconds, SETTLE_S * math.log2(most))
    with tempfile.TemporaryDirectory(prefix="gs-scale-") as folder:
        site = Site(Path(folder), cpu_ms, most, wait_ms=wait_ms, threads=threads)
        site.log.touch()
        with site.daemon():
            before = fixed(site, compared, seconds)
            rows = ramp(site, before[most], seconds, settle_s)
            # A busy machine's speed drifts, so the fixed numbers are measured on both sides of the ramp.
            after = fixed(site, compared, seconds)
        rates = {workers: (before[workers] + after[workers]) / 2 for workers in before}
        moves = [line for line in site.log.read_text().splitlines() if " autoscale " in line]
    best, peak = max(rates.values()), max(one["answered"] for one in rows if not one["offered"])
    click.echo(f"\n{plot(rows, best)}\n")
    click.echo("\n".join(moves))
    click.echo(f"\npeak {peak:.1f} requests/s, best fixed number {best:.1f}: {peak / best:.1%}")
    click.echo(f"workers at the end: {rows[-1]['workers'][-1]}")
    if path:
        path.write_text(json.dumps({"fixed": rates, "ramp": rows, "moves": moves}, indent=1))


if __name__ == "__main__":
    main()
