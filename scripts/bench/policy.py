"""Batching policies side by side before one engine, in simulated time: what the scheduler itself is worth.

    python scripts/bench/policy.py [--requests 20000] [--fixed-us 273] [--token-us 0.366] [--gap-us 150] [--noise 0.05]

The engine takes fixed + token · tokens for a batch (the defaults fit BERT-base on an H200, docs/performance.md), give or
take `noise` of that, and `gap` passes before a batch that was not sent ahead. "ours" is the real `Scheduler`, run through
its injected clock and dispatched as the daemon does; "one ahead" is first come, first served with one frozen batch ahead, as
Text-Embeddings-Inference does it; "count + window" sends 32 texts, or fewer after 5 ms. Prices of the processes around are
the same for all, and left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from simulation import Batcher, CountAndWindow, Engine, OneAhead, Ours, Seen, Simulation, Workload

POLICIES: dict[str, Callable[[Callable[[], float]], Batcher]] = {
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
HEAD = "| load | policy | texts/s | p50 ms | p99 ms | p50, 256 texts | p99, 256 texts |\n|---|---|---|---|---|---|---|"


def main() -> None:
    """Print one table a workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fixed-us", type=float, default=273.0)
    parser.add_argument("--token-us", type=float, default=0.366)
    parser.add_argument("--gap-us", type=float, default=150.0)
    parser.add_argument("--noise", type=float, default=0.05)
    options = parser.parse_args()
    engine = Engine(options.fixed_us / 1e6, options.token_us / 1e6, options.gap_us / 1e6, options.noise)
    for title, workload in WORKLOADS.items():
        print(f"\n{title}\n\n{HEAD}")
        for clients in CLOSED:
            for name, policy in POLICIES.items():
                closed = Simulation(policy, engine).closed(clients, workload, options.requests, options.seed)
                row(f"{clients} clients", name, closed)
        for load in OPEN:
            for name, policy in POLICIES.items():
                row(
                    f"{load:.0%}",
                    name,
                    Simulation(policy, engine).open(load, workload, options.requests, options.seed),
                )


def row(load: str, name: str, seen: Seen) -> None:
    """Print one line: p50 and p99 of requests of one text, and of those of many."""
    times = [quantile(kind, part) for kind in (seen.single, seen.bulk) if kind for part in (0.5, 0.99)]
    cells = [f"{seconds * 1e3:.2f}" for seconds in times] + ["–"] * (4 - len(times))
    print(f"| {load} | {name} | {seen.rate:,.0f} | {' | '.join(cells)} |", flush=True)


def quantile(values: list[float], part: float) -> float:
    """The value below which `part` of them lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


if __name__ == "__main__":
    main()
