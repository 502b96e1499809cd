"""The whole stack over HTTP on one machine: a daemon, Gunicorn in several settings, and what each was limited by.

    .venv/bin/python scripts/bench/http_stack.py [--model NAME] [--workers 12] [--setting gthread:24:auto] [--seconds 4]

A setting is CLASS[:THREADS[:AFFINITY]]: Gunicorn's worker class, its threads, and GPU_SERVER_WEB_CPU_AFFINITY. The load is
that of `gpu-server bench http`. Shares are of one core: of the busiest Gunicorn worker (and the mean of all), of the
daemon's router thread, of the busiest load process. "engine" is the part of the time in which a forward ran, "machine" the
share of all cores.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import click

from gpu_server import Client
from gpu_server.bench.plan import Plan
from gpu_server.bench.report import Report
from gpu_server.bench.run import bench
from gpu_server.errors import RemoteError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("gthread:24:auto", "gthread:24", "gthread:64:auto", "gevent", "sync")
CELLS = ((1, 1), (32, 1), (256, 1), (32, 32))
FULL = 0.9
START_LIMIT_S = 600.0


class Shares:
    """CPU of some threads and processes while a run is measured; `show` is what the run calls again and again."""

    def __init__(self, workers: Sequence[int], router: int) -> None:
        self._stats = [Path(f"/proc/{pid}/stat") for pid in workers]
        self._stats.append(Path(f"/proc/{router}/task/{router}/stat"))
        self._seen: list[tuple[float, list[float]]] = []

    def show(self, line: str, done: float) -> None:
        """Look, if it is being measured now."""
        if line.startswith("measuring"):
            self._seen.append((time.monotonic(), [cpu_s(stat) for stat in self._stats]))

    @property
    def began_s(self) -> float:
        """When it was first looked, as Unix time."""
        return time.time() - time.monotonic() + self._seen[0][0]

    def cores(self) -> list[float]:
        """Cores that each used, the router last."""
        (begun, first), (ended, last) = self._seen[0], self._seen[-1]
        return [(after - before) / (ended - begun) for before, after in zip(first, last, strict=True)]


def cpu_s(stat: Path) -> float:
    """User and system time of a process or thread so far."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Child processes."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll; exits with the log if the process ends first."""
    give_up = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            if ready():
                return
        except (RemoteError, OSError):
            pass
        time.sleep(0.1)
    raise SystemExit(f"it did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def running(log: Path, endpoint: str, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A module of Python's as a process of its own."""
    given = os.environ | {"GPU_SERVER_ENDPOINT": endpoint, **env}
    with log.open("ab") as sink:
        process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, env=given, stderr=sink)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def measured(url: str, cell: tuple[int, int], shares: Shares, seconds: float) -> Report:
    """One run of the load."""
    connections, texts = cell
    processes = max(1, min(6, (os.cpu_count() or 1) * 3 // 8, connections))
    plan = Plan(url=url, connections=connections, processes=processes, duration_s=seconds, texts=texts)
    return asyncio.run(bench(plan, shares.show))


def row(name: str, cell: tuple[int, int], report: Report, cores: Sequence[float], engine: float) -> str:
    """A line of the table; what is at least 90 % full is the limit, and first of all that which is fullest."""
    *web, router = cores
    load, machine = report.generator.busiest, report.generator.machine_busy
    shares = {"worker": max(web), "router": router, "engine": engine, "load": load, "machine": machine}
    limits = sorted(
        (part for part, share in shares.items() if share >= FULL), key=shares.__getitem__, reverse=True
    )
    latency = report.latency
    times = ", ".join(f"{span * 1e3:.1f}" for span in (latency.p50_s, latency.p95_s, latency.p99_s))
    errors = sum(outcome.requests for status, outcome in report.outcomes.items() if status != "200")
    fields = [
        *(
            name,
            f"{cell[0]} x {cell[1]}",
            f"{report.requests_per_s:,.0f}",
            f"{report.texts_per_s:,.0f}",
            times,
        ),
        f"{max(web):.0%} ({statistics.mean(web):.0%})",
        *(f"{share:.0%}" for share in (router, engine, load, machine)),
        *(", ".join(limits) or "none full", str(errors)),
    ]
    return "| " + " | ".join(fields) + " |"


@click.command()
@click.option("--model", default="", help="what to serve; the default model if left out")
@click.option("--workers", default=12)
@click.option("--setting", "settings", multiple=True, default=SETTINGS, help="CLASS[:THREADS[:AFFINITY]]")
@click.option("--seconds", default=4.0, help="measured in each run, after 2 s of warm-up")
def main(model: str, workers: int, settings: Sequence[str], seconds: float) -> None:
    """Print the table."""
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="hs-")))
        endpoint, log = f"ipc://{folder}/s", folder / "log"
        start = ["gpu_server", "start", *([model] if model else [])]
        daemon = exits.enter_context(running(log, endpoint, *start))
        client = exits.enter_context(Client(endpoint, timeout_s=5))
        until(lambda: client.status().state == "ready", daemon, log)
        print(f"{client.model().name} on {client.model().device}, {os.cpu_count()} cores, {workers} workers")
        print("\n| setting | connections x texts | requests/s | texts/s | p50, p95, p99 ms | worker | router | engine "
              "| load | machine | limit | errors |\n|" + "---|" * 12, flush=True)  # fmt: skip
        for name in settings:
            run_setting(name, workers, seconds, client, daemon.pid, log)
        for gpu in client.status().gpus:
            print(f"\n{gpu.name}: {gpu.memory_used >> 20:,} MiB in use")


def run_setting(name: str, workers: int, seconds: float, client: Client, daemon: int, log: Path) -> None:
    """Print the rows of one setting of Gunicorn."""
    kind, threads, affinity = (*name.split(":"), "", "")[:3]
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    options = [
        "-c",
        "python:web.serving",
        "-k",
        kind,
        "--threads",
        threads or "1",
        "-w",
        str(workers),
        "-b",
        bind,
    ]
    env = {"GPU_SERVER_WEB_CPU_AFFINITY": affinity or "off"}
    with running(log, client.endpoint, "gunicorn", *options, "web:app", **env) as web:
        until(lambda: urlopen(f"http://{bind}/livez") and len(children(web.pid)) == workers, web, log)
        for cell in CELLS:
            shares = Shares(children(web.pid), daemon)
            report = measured(f"http://{bind}/embed", cell, shares, seconds)
            points = [p.busy for p in client.history().points if p.at >= shares.began_s]
            print(row(name, cell, report, shares.cores(), statistics.mean(points or [0.0])), flush=True)


if __name__ == "__main__":
    main()
