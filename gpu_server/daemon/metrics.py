"""Counters and histograms of the daemon as plain numbers, and their Prometheus text form."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gpu_server.errors import RemoteError

SECONDS = tuple(1e-4 * 2**k for k in range(18))
"""Bucket bounds of latencies: 0.1 ms to 13 s."""
POWERS = tuple(float(2**k) for k in range(18))
"""Bucket bounds of sizes: 1 to 131072."""
COUNTERS = {
    "requests": "requests accepted",
    "items": "items accepted",
    "success": "requests answered without error",
}
HISTOGRAMS = {
    "queue": ("queue_duration_seconds", "wait of a batch's oldest item before its forward"),
    "compute": ("inference_duration_seconds", "time of one forward"),
    "duration": ("request_duration_seconds", "a request from receipt to reply"),
    "batch_items": ("batch_items", "items in one batch"),
    "batch_tokens": ("batch_tokens", "cost of one batch"),
}


CODES = tuple(kind.code for kind in RemoteError.__subclasses__())


class Histogram:
    """Counts by bucket; observing costs one bisection."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        bounds = [f"{bound:g}" for bound in self.bounds] + ["+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class ModelMetrics:
    """What is counted for one model; every series exists from the moment the model does."""

    def __init__(self) -> None:
        self.requests = 0
        self.items = 0
        self.success = 0
        self.queue = Histogram(SECONDS)
        self.compute = Histogram(SECONDS)
        self.duration = Histogram(SECONDS)
        self.batch_items = Histogram(POWERS)
        self.batch_tokens = Histogram(POWERS)

    def count_batch(self, items: int, tokens: int, compute_s: float, queue_s: float) -> None:
        """Count one batch: its size, its forward, and the wait of its oldest item."""
        self.batch_items.observe(items)
        self.batch_tokens.observe(tokens)
        self.compute.observe(compute_s)
        self.queue.observe(queue_s)


class Metrics:
    """All that the daemon counts."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self.failures: dict[str, int] = defaultdict(int, dict.fromkeys(CODES, 0))
        self.dropped: dict[str, int] = defaultdict(int)
        for reason in ("unreadable", "peer_gone", "peer_slow", "late_result"):
            self.dropped[reason] = 0

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one model, made on first use."""
        known = self.models.get(name)
        if known is None:
            known = self.models[name] = ModelMetrics()
        return known

    def counters(self) -> dict[str, int]:
        """The totals for the status document."""
        totals = {
            "requests": sum(m.requests for m in self.models.values()),
            "items": sum(m.items for m in self.models.values()),
            "success": sum(m.success for m in self.models.values()),
            "batches": sum(sum(m.batch_items.counts) for m in self.models.values()),
            "failures": sum(self.failures.values()),
        }
        return totals | {f"dropped_{reason}": n for reason, n in self.dropped.items()}

    def render(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Prometheus text format; `gauges` are values of the moment: name to (help, value)."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Snapshot(self, gauges))
        return generate_latest(registry).decode()


class _Snapshot(Collector):
    """The numbers of one moment in the library's form; the hot path counts in plain ints, which cost a tenth."""

    def __init__(self, metrics: Metrics, gauges: Mapping[str, tuple[str, float]]) -> None:
        self._metrics = metrics
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """Every family, in a fixed order."""
        for name, (text, value) in self._gauges.items():
            yield GaugeMetricFamily(f"gpu_server_{name}", text, value)
        models = self._metrics.models
        for field, text in COUNTERS.items():
            counter = CounterMetricFamily(f"gpu_server_{field}", text, labels=["model"])
            for name, about in models.items():
                counter.add_metric([name], getattr(about, field))
            yield counter
        for field, label, counts in (
            ("failures", "code", self._metrics.failures),
            ("dropped", "reason", self._metrics.dropped),
        ):
            counter = CounterMetricFamily(f"gpu_server_{field}", f"{field} by {label}", labels=[label])
            for key, count in counts.items():
                counter.add_metric([key], count)
            yield counter
        for field, (series, text) in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"gpu_server_{series}", text, labels=["model"])
            for name, about in models.items():
                histogram: Histogram = getattr(about, field)
                family.add_metric([name], buckets=histogram.buckets(), sum_value=histogram.total)
            yield family
