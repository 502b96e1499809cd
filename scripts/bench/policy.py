"""Batching policies side by side before one engine, in simulated time: what the scheduler itself is worth.

    python scripts/bench/policy.py [--requests 10000] [--seeds 20] [--fixed-us 273] [--token-us 0.366] [--gap-us 150]
                                   [--graphs]

The engine takes fixed + token · tokens for a batch (the defaults fit BERT-base on an H200, docs/performance.md), give or
take `noise` of that, and `gap` passes before a batch that was not sent ahead. "ours" is the real `Scheduler`, run through
its injected clock and dispatched as the daemon does; "one ahead" is first come, first served with one frozen batch ahead, as
Text-Embeddings-Inference does it; "count + window" sends 32 texts, or fewer after 5 ms. Prices of the processes around are
the same for all, and left out. With --graphs a batch costs as much as the smallest CUDA graph that holds it.
First loads of many equal clients: means over the seeds, and in brackets by how many percent ours is better, give or take
two standard errors of the differences by seed; bold where it is worse. Then pipelined requests of 32 texts, and one client
of single texts beside one that keeps 10,000 texts queued.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, sqrt
from statistics import mean, stdev

from simulation import (
    CountAndWindow,
    Engine,
    Interactive,
    Make,
    OneAhead,
    Ours,
    Seen,
    Simulation,
    Workload,
)

POLICIES: dict[str, Make] = {
    "ours": Ours,
    "one ahead": OneAhead,
    "count + window": CountAndWindow,
}
WORKLOADS = {
    "one text a request": Workload(0.0, 1),
    "1 in 20 requests holds 256 texts": Workload(0.05, 256),
}
CLOSED = (1, 16, 64, 256)
OPEN = (0.3, 0.7, 0.95)
PIPELINED = Workload(1.0, 32, connections=4)
IN_FLIGHT = (32, 64, 128)
GRAPHS = tuple(sorted([1 << n for n in range(4, 15)] + [3 << n for n in range(7, 13)]))
"""Tokens of the graphs of a text model's engine with batches of 16,384."""
LEVEL = 0.1
"""Percent of a difference that are none."""
HEAD = "| load | policy | texts/s | p50 ms | p99 ms | p50, 256 texts | p99, 256 texts |\n|---|---|---|---|---|---|---|"
ALONE = Interactive(kept=0)
BULK = Interactive(kept=20, pause_s=float("inf"))
BOTH = Interactive(kept=20)
FULL = "| in flight | policy | texts/s | p50, p99 ms | tokens a batch |\n|---|---|---|---|---|"
BESIDE = (
    "| policy | alone: p50, p99 ms | beside bulk: p50, p99 ms | ratio of the p99s | bulk texts/s, alone | beside |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Lead:
    """By how many percent ours is better than a rival: the mean of the seeds, and two standard errors of it."""

    percent: float
    error: float

    @classmethod
    def of(cls, gains: Sequence[float]) -> Lead:
        """What the gains of each seed say together; those of one seed say nothing."""
        error = 2 * stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else inf
        return cls(100 * mean(gains), 100 * error)

    @property
    def verdict(self) -> str:
        """Level is what may be no difference, or a difference that is none."""
        if abs(self.percent) - self.error <= LEVEL:
            return "level"
        return "ahead" if self.percent > 0 else "behind"

    def __str__(self) -> str:
        text = f"{self.percent:+.1f} ± {self.error:.1f}"
        return f"(**{text}**)" if self.verdict == "behind" else f"({text})"


def main() -> None:
    """Print one table a workload, that of pipelined requests, and that of a client beside bulk work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--fixed-us", type=float, default=273.0)
    parser.add_argument("--token-us", type=float, default=0.366)
    parser.add_argument("--gap-us", type=float, default=150.0)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--graphs", action="store_true")
    options = parser.parse_args()
    engine = Engine(
        options.fixed_us / 1e6,
        options.token_us / 1e6,
        options.gap_us / 1e6,
        options.noise,
        GRAPHS if options.graphs else (),
    )
    for title, workload in WORKLOADS.items():
        print(f"\n{title}\n\n{HEAD}")
        table(workload, engine, options.requests, options.seeds)
    print(f"\nrequests of 32 texts on 4 connections\n\n{FULL}")
    pipelined(engine, options.requests, options.seeds)
    print(f"\none client of single texts beside 10,000 queued texts\n\n{BESIDE}")
    for name, policy in POLICIES.items():
        beside(name, lambda who, p=policy: Simulation(p, engine).interactive(who, options.requests))  # type: ignore[misc]


def table(workload: Workload, engine: Engine, requests: int, seeds: int) -> None:
    """Print one line a load and policy, and how often ours is ahead, level and behind."""
    verdicts: Counter[str] = Counter()
    for load in CLOSED + OPEN:
        seen = {
            name: [
                figures(under(load, Simulation(policy, engine, seed), workload, requests))
                for seed in range(1, seeds + 1)
            ]
            for name, policy in POLICIES.items()
        }
        verdicts.update(compare(f"{load} clients" if load >= 1 else f"{load:.0%}", seen))
    print("\nours by the brackets:", ", ".join(f"{verdict} {n} ×" for verdict, n in verdicts.most_common()))


def under(load: float, simulation: Simulation, workload: Workload, requests: int) -> Seen:
    """One run: a closed loop of `load` clients, or an open one at that part of the capacity if it is below 1."""
    if load < 1:
        return simulation.open(load, workload, requests)
    return simulation.closed(int(load), workload, requests)


def figures(seen: Seen) -> list[float]:
    """Texts a second; p50 and p99 in ms of requests of one text, and of those of many if there are any."""
    return [seen.rate, *(ms(kind, part) for kind in (seen.single, seen.bulk) if kind for part in (0.5, 0.99))]


def compare(load: str, seen: dict[str, list[list[float]]]) -> list[str]:
    """Print the line of each policy, from its figures by seed; returns what each figure of a rival says of ours."""
    ours = list(zip(*seen["ours"], strict=True))
    verdicts = []
    for name, runs in seen.items():
        cells = []
        for column, (mine, theirs) in enumerate(zip(ours, zip(*runs, strict=True), strict=True)):
            cell = f"{mean(theirs):,.2f}" if column else f"{mean(theirs):,.0f}"
            if name != "ours":
                lead = Lead.of([gain(column, *pair) for pair in zip(mine, theirs, strict=True)])
                verdicts.append(lead.verdict)
                cell = f"{cell} {lead}"
            cells.append(cell)
        cells += ["–"] * (5 - len(cells))
        print(f"| {load} | {name} | {' | '.join(cells)} |", flush=True)
    return verdicts


def gain(column: int, ours: float, theirs: float) -> float:
    """The part by which ours is better: more texts a second (column 0), or less time."""
    return ours / theirs - 1 if column == 0 else 1 - ours / theirs


def pipelined(engine: Engine, requests: int, seeds: int) -> None:
    """Print one line a policy and number of requests in flight: means over the seeds."""
    for in_flight, (name, policy) in product(IN_FLIGHT, POLICIES.items()):
        simulations = [Simulation(policy, engine, seed) for seed in range(1, seeds + 1)]
        runs = [simulation.closed(in_flight, PIPELINED, requests) for simulation in simulations]
        rate, p50, p99 = (mean(column) for column in zip(*map(figures, runs), strict=True))
        tokens = mean(seen.batch_tokens for seen in runs)
        print(f"| {in_flight} | {name} | {rate:,.0f} | {p50:.2f}, {p99:.2f} | {tokens:,.0f} |", flush=True)


def beside(name: str, run: Callable[[Interactive], Seen]) -> None:
    """Print one line: single texts alone and beside bulk work, and bulk work without and with them."""
    alone, bulk, both = run(ALONE), run(BULK), run(BOTH)
    times = [f"{ms(seen.single, 0.5):.2f}, {ms(seen.single, 0.99):.2f}" for seen in (alone, both)]
    ratio = ms(both.single, 0.99) / ms(alone.single, 0.99)
    print(f"| {name} | {' | '.join(times)} | {ratio:.1f} | {bulk.rate:,.0f} | {both.rate:,.0f} |", flush=True)


def ms(values: list[float], part: float) -> float:
    """Milliseconds below which `part` of these seconds lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] * 1e3


if __name__ == "__main__":
    main()
