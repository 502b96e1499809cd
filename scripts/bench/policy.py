"""Batching policies side by side before one engine, in simulated time: what the scheduler itself is worth.

    python scripts/bench/policy.py [--requests 20000] [--fixed-us 276] [--token-us 0.402] [--gap-us 150]

The engine takes fixed + token · tokens for a batch (the defaults fit BERT-base on an H200, docs/performance.md), and `gap`
passes before one that was not sent ahead. "ours" is the real `Scheduler`, run through its injected clock and dispatched as
the daemon does; "one ahead" is first come, first served with one frozen batch ahead, as Text-Embeddings-Inference does it;
"count + window" sends 32 texts, or fewer after 5 ms. Prices of the processes around are the same for all, and left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from simulation import CountAndWindow, Engine, OneAhead, Ours, Seen, Simulation, Workload

POLICIES = {"ours": Ours, "one ahead": OneAhead, "count + window": CountAndWindow}
WORKLOADS = {"one text a request": Workload(0.0, 1), "1 in 20 requests holds 256 texts": Workload(0.05, 256)}
CLOSED = (1, 16, 64, 256)
OPEN = (0.3, 0.7, 0.95)


def main() -> None:
    """Print one table a workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fixed-us", type=float, default=276.0)
    parser.add_argument("--token-us", type=float, default=0.402)
    parser.add_argument("--gap-us", type=float, default=150.0)
    parser.add_argument("--noise", type=float, default=0.05)
    options = parser.parse_args()
    engine = Engine(options.fixed_us / 1e6, options.token_us / 1e6, options.gap_us / 1e6, options.noise)
    for name, workload in WORKLOADS.items():
        print(
            f"\n{name}\n\n| load | policy | texts/s | p50 ms | p99 ms | p99 ms, one text |\n|---|---|---|---|---|---|"
        )
        for clients in CLOSED:
            row(
                f"{clients} clients",
                lambda s, n=clients, w=workload: s.closed(n, w, options.requests, options.seed),
                engine,
            )
        for load in OPEN:
            row(
                f"{load:.0%}",
                lambda s, at=load, w=workload: s.open(at, w, options.requests, options.seed),
                engine,
            )


def row(load: str, run: Callable[[Simulation], Seen], engine: Engine) -> None:
    """Run one load under each policy and print its lines."""
    for name, policy in POLICIES.items():
        seen = run(Simulation(policy, engine))
        times = (quantile(seen.latencies, 0.5), quantile(seen.latencies, 0.99), quantile(seen.single, 0.99))
        print(f"| {load} | {name} | {seen.rate:,.0f} |" + "".join(f" {t * 1e3:.2f} |" for t in times))


def quantile(values: list[float], part: float) -> float:
    """The value below which `part` of them lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


if __name__ == "__main__":
    main()
