"""The whole stack at a steady load for long, its models reloaded meanwhile: what is lost, and what grows.

    .venv/bin/python scripts/bench/soak.py [--minutes 30] [--rate-share 0.7] [--reload-every 5] [--model MODEL]

Starts a daemon with MODEL (an embedding model; default all-MiniLM-L6-v2) and Gunicorn, measures what they do for as many
callers as the load will have (closed loop, HTTP and direct clients at once), and then offers a share of that at random times
(open loop). Every answer is compared with the one that its text got alone before. A line a minute; then a verdict: flat is
what after a warm-up (a quarter of the run, at most 5 minutes) has a median in its last quarter that is not above its first
quarter's by more than 5 % or 32 MiB of memory of a process, 4 descriptors, 64 MiB of the GPU. Moments with two engines do
not count. Exits with 1 if something grew, was lost or was wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from soak_client import WRONG, Outcomes, Told
from soak_load import SETTLE_S, TIMEOUT_S, Load, read, write_cases
from soak_stack import Reloads, Stack, started
from soak_watch import Finding, Watch

from gpu_server import Client
from gpu_server.bench.histogram import Histogram
from gpu_server.bench.loops import succeeded
from gpu_server.cli.bench_http import default_processes

SAMPLES_A_MINUTE = 20


@dataclass
class Soaked:
    """What came of the load."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reloads: list[tuple[float, int, str]] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that should not have been."""
        faults = [
            f"{count} × {outcome}" for outcome, count in self.outcomes.items() if not succeeded(outcome)
        ]
        return faults + [f"a reload exited {code}: {said}" for _, code, said in self.reloads if code]


def main() -> int:
    """Run it and say how it went; 0 if nothing grew, was lost or was wrong."""
    options = parse()
    with ExitStack() as exits:
        stack = started(options, exits)
        with Client(stack.endpoint, timeout_s=TIMEOUT_S) as client:
            bodies, wanted = write_cases(client, stack.folder, options.texts)
            info, engine = client.model(), client.status().engines[0]
            print(
                f"{info.name}: {info.dtype}, {info.runs}, on {engine.device}; {options.workers} web workers, ",
                end="",
            )
            print(f"{options.processes} client processes, {options.texts} texts a request")
            load = Load(options, stack, bodies, wanted)
            http, direct = load.capacity()
            print(f"capacity {http:.1f} requests/s over HTTP and {direct:.1f}/s direct at once; ", end="")
            print(f"offered: {options.rate_share:.0%} of it for {options.minutes:g} minutes", flush=True)
            watch = Watch(client, stack.daemon, stack.gunicorn)
            soaked = soak(
                options, load, watch, stack, (http * options.rate_share, direct * options.rate_share)
            )
        good = verdict(soaked, watch)
        if not good:
            print(f"\nthe log's end:\n{stack.log.read_text()[-3000:]}")
    return 0 if good else 1


def parse() -> argparse.Namespace:
    """The options."""
    workers = processes = max(2, default_processes())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate-share", type=float, default=0.7, help="of what was measured")
    parser.add_argument("--reload-every", type=float, default=5.0, help="minutes; 0 never does")
    parser.add_argument("--model", default="", help="folder or hub id of an embedding model")
    parser.add_argument("--texts", type=int, default=2, help="a request")
    parser.add_argument(
        "--callers", type=int, default=32, help="most open requests over HTTP, and most direct ones"
    )
    parser.add_argument("--measure-s", type=float, default=10.0, help="seconds of the measurement before")
    parser.add_argument("--workers", type=int, default=workers, help="Gunicorn's")
    parser.add_argument("--processes", type=int, default=processes, help="client processes")
    return parser.parse_args()


def soak(
    options: argparse.Namespace, load: Load, watch: Watch, stack: Stack, rates: tuple[float, float]
) -> Soaked:
    """Offer the load, look at the processes, reload, and print a line a minute."""
    soaked, reloads = Soaked(), Reloads(stack, options.reload_every * 60)
    period_s = min(60.0, options.minutes * 60)
    periods = max(1, round(options.minutes * 60 / period_s))
    begins_s = time.monotonic() + SETTLE_S
    print(HEADINGS, flush=True)
    with load.running(rates, begins_s, period_s, periods) as clients:
        reloads.begin(begins_s, begins_s + periods * period_s)
        for period in range(1, periods + 1):
            for step in range(1, SAMPLES_A_MINUTE + 1):
                pause(begins_s + (period - 1 + step / SAMPLES_A_MINUTE) * period_s)
                watch.look(changing=reloads.poll())
            told = [read(client) for client in clients]
            note(soaked, told)
            print(row(period, told, watch, len(reloads.done)), flush=True)
        note(soaked, [read(client) for client in clients])
    soaked.reloads = reloads.finish()
    return soaked


def pause(until_s: float) -> None:
    """Sleep until then."""
    time.sleep(max(0.0, until_s - time.monotonic()))


def note(soaked: Soaked, told: Sequence[Told]) -> None:
    """Count what has ended."""
    for one in told:
        for kind in (one.http, one.direct):
            soaked.outcomes.update({outcome: histogram.count for outcome, histogram in kind.items()})


HEADINGS = (
    f"{'min':>4} {'HTTP':>8} {'p99 ms':>8} {'direct':>8} {'p99 ms':>8} {'errors':>7} {'wrong':>6} {'reloads':>7}  "
    f"{'RSS MiB: daemon':>15} {'engine':>8} {'web':>8}  {'fds: daemon':>11} {'engine':>7} {'web':>6} {'GPU MiB':>9}"
)


def row(period: int, told: Sequence[Told], watch: Watch, reloads: int) -> str:
    """One minute as a line of the table."""
    http, direct = together([one.http for one in told]), together([one.direct for one in told])
    both = together([http, direct])
    wrong = both[WRONG].count if WRONG in both else 0
    errors = sum(one.count for outcome, one in both.items() if not succeeded(outcome)) - wrong
    values = (
        {str(figure): value for figure, value in watch.samples[-1].values.items()} if watch.samples else {}
    )
    used = f"{values['used GPU MiB']:9.0f}" if "used GPU MiB" in values else f"{'-':>9}"
    mib, fds = (
        [values.get(f"{of} {unit}", 0.0) for of in ("daemon", "engine", "web")] for unit in ("MiB", "fds")
    )
    return (
        f"{period:4} {good(http)} {good(direct)} {errors:7} {wrong:6} {reloads:7}  "
        f"{mib[0]:15.1f} {mib[1]:8.1f} {mib[2]:8.1f}  {fds[0]:11.0f} {fds[1]:7.0f} {fds[2]:6.0f} {used}"
    )


def together(kinds: Sequence[Outcomes]) -> Outcomes:
    """Outcomes of several processes or kinds added up."""
    merged: Outcomes = {}
    for kind in kinds:
        for outcome, histogram in kind.items():
            merged.setdefault(outcome, Histogram()).merge(histogram)
    return merged


def good(kind: Outcomes) -> str:
    """Right answers, and their 99th percentile."""
    right = kind.get("200", Histogram())
    return f"{right.count:8} {right.quantile(0.99) * 1e3:8.1f}"


def verdict(soaked: Soaked, watch: Watch) -> bool:
    """Print what was found; whether all is well."""
    findings = watch.findings()
    print(f"\n{'figure':16} {'first quarter':>13} {'last quarter':>13} {'may be':>9}  verdict")
    for found in findings:
        word = "flat" if found.flat else "NOT FLAT"
        print(f"{found.figure!s:16} {found.first:13.1f} {found.last:13.1f} {found.bound:9.1f}  {word}")
    seconds = [f"{took:.1f}" for took, _, _ in soaked.reloads]
    print(
        f"\n{sum(soaked.outcomes.values())} requests; {len(seconds)} reloads, seconds: {', '.join(seconds)}; ",
        end="",
    )
    print(f"{len(watch.engines)} engine processes; {len(watch.samples)} samples")
    faults = soaked.faults + grown(findings)
    print("all flat, nothing lost, nothing wrong" if not faults else f"FAILED: {'; '.join(faults)}")
    return not faults


def grown(findings: Sequence[Finding]) -> list[str]:
    """What did not stay flat."""
    if not findings:
        return ["no samples to judge by"]
    return [f"{found.figure} grew" for found in findings if not found.flat]


if __name__ == "__main__":
    sys.exit(main())
