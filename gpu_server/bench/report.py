"""What a run of all processes comes to, and whether it says more about the generator than about the service."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpu_server.bench.histogram import Histogram
from gpu_server.bench.loops import succeeded
from gpu_server.bench.plan import Plan, Result

BUSY_SHARE = 0.9
LATE_S = 0.005
WAITED_SHARE = 0.01


class Outcome(msgspec.Struct, frozen=True):
    """Requests that ended in one way; latencies in seconds."""

    requests: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


class Generator(msgspec.Struct, frozen=True):
    """How hard the generator worked.

    busiest: CPU cores its busiest process used. lag_p99_s: lateness of its event loops' timers. late_p99_s: lateness
    of its requests where a connection was free (open loop). machine_busy: share of this machine's CPU that was in use,
    by anything. limits: why the generator itself, or its settings, may have been the limit; empty if they were not.
    """

    processes: int
    busiest: float
    lag_p99_s: float
    late_p99_s: float
    machine_busy: float
    limits: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run; requests_per_s and texts_per_s are of 2xx answers that came in the window.

    offered_per_s is what was due in it, 0 in a closed loop.
    """

    url: str
    loop: str
    connections: int
    texts: int
    duration_s: float
    offered_per_s: float
    requests_per_s: float
    texts_per_s: float
    latency: Outcome
    outcomes: dict[str, Outcome]
    generator: Generator


def report(plan: Plan, results: Sequence[Result], machine_busy: float) -> Report:
    """Add up what the processes measured."""
    outcomes: dict[str, Histogram] = {}
    for result in results:
        for name, histogram in result.outcomes.items():
            outcomes.setdefault(name, Histogram()).merge(histogram)
    good = _merged([histogram for name, histogram in outcomes.items() if succeeded(name)])
    rate = sum(result.good for result in results) / plan.duration_s
    return Report(
        url=plan.url,
        loop="open" if plan.rate else "closed",
        connections=plan.connections,
        texts=plan.texts,
        duration_s=plan.duration_s,
        offered_per_s=sum(result.offered for result in results) / plan.duration_s,
        requests_per_s=rate,
        texts_per_s=0.0 if plan.body_file else rate * plan.texts,
        latency=_outcome(good),
        outcomes={name: _outcome(outcomes[name]) for name in sorted(outcomes)},
        generator=_generator(plan, results, machine_busy),
    )


def _generator(plan: Plan, results: Sequence[Result], machine_busy: float) -> Generator:
    cores = [result.cpu_s / plan.duration_s for result in results]
    lag = _merged([result.lag for result in results]).quantile(0.99)
    late = _merged([result.late for result in results]).quantile(0.99)
    offered = sum(result.offered for result in results)
    waited = sum(result.waited for result in results) / offered if offered else 0.0
    limits = []
    if full := sum(used >= BUSY_SHARE for used in cores):
        limits.append(f"{full} of {len(cores)} generator processes used a whole core each: raise --processes")
    if max(lag, late) >= LATE_S:
        limits.append(
            f"the generator ran {max(lag, late) * 1e3:.1f} ms late (p99): latencies hold that much of its own"
        )
    if machine_busy >= BUSY_SHARE:
        limits.append(
            f"this machine's CPUs were {machine_busy:.0%} busy: what runs here competed with the generator"
        )
    if waited >= WAITED_SHARE:
        limits.append(
            f"{waited:.1%} of the requests found no free connection: raise --connections, unless the service is overloaded"
        )
    return Generator(len(cores), max(cores, default=0.0), lag, late, machine_busy, tuple(limits))


def _merged(histograms: Sequence[Histogram]) -> Histogram:
    merged = Histogram()
    for histogram in histograms:
        merged.merge(histogram)
    return merged


def _outcome(histogram: Histogram) -> Outcome:
    p50, p95, p99 = map(histogram.quantile, (0.50, 0.95, 0.99))
    return Outcome(histogram.count, histogram.mean_s, p50, p95, p99, histogram.max_s)


def table(made: Report) -> str:
    """The report as text; latencies in milliseconds."""
    generator = made.generator
    offered = f" of {made.offered_per_s:,.1f} offered" if made.loop == "open" else ""
    texts = f"   {made.texts_per_s:,.1f} texts/s" if made.texts_per_s else ""
    total = sum(row.requests for row in made.outcomes.values()) or 1
    lines = [
        f"{made.url}: {made.loop} loop, {made.connections} connections, {made.duration_s:g} s",
        f"{made.requests_per_s:,.1f} requests/s{offered}{texts}",
        f"{'outcome':16} {'requests':>10} {'share':>7} {'mean ms':>9} {'p50':>9} {'p95':>9} {'p99':>9} {'max':>9}",
    ]
    for name, row in made.outcomes.items():
        spans = (row.mean_s, row.p50_s, row.p95_s, row.p99_s, row.max_s)
        times = " ".join(f"{span * 1e3:9.2f}" for span in spans)
        lines.append(f"{name:16} {row.requests:10,} {row.requests / total:7.1%} {times}")
    late_ms = max(generator.lag_p99_s, generator.late_p99_s) * 1e3
    lines.append(
        f"generator: processes {generator.processes}, the busiest {generator.busiest:.2f} cores, "
        f"lateness p99 {late_ms:.2f} ms, machine {generator.machine_busy:.0%} busy"
    )
    lines += [f"LIMIT: {limit}" for limit in generator.limits]
    return "\n".join(lines)
