"""The daemon's counters and histograms; every series is there from the moment its model or route is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from gpu_server.daemon.metrics.families import POWERS
from gpu_server.daemon.metrics.histogram import Histogram
from gpu_server.daemon.metrics.text import Series
from gpu_server.daemon.metrics.web import WebCounts
from gpu_server.errors import RemoteError
from gpu_server.wire.monitoring import SECONDS

CODES = tuple(kind.code for kind in RemoteError.__subclasses__())
DROPPED = ("unreadable", "peer_gone", "peer_slow", "peer_refused", "key_refused", "late_result", "report")


class ModelMetrics:
    """What is counted for one model."""

    def __init__(self) -> None:
        self.requests = 0
        self.items = 0
        self.success = 0
        self.retries = 0
        self.tokenize = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.inference = Histogram(SECONDS)
        self.duration = Histogram(SECONDS)
        self.batch_items = Histogram(POWERS)
        self.batch_tokens = Histogram(POWERS)

    def accepted(self, items: int) -> None:
        """Count a request that is queued."""
        self.requests += 1
        self.items += items

    def answered(self, duration_s: float, queue_s: float) -> None:
        """Count a request that was answered without error."""
        self.success += 1
        self.duration.observe(duration_s)
        self.queue.observe(queue_s)

    def ran(self, items: int, tokens: int, inference_s: float) -> None:
        """Count one batch: its size and its forward."""
        self.batch_items.observe(items)
        self.batch_tokens.observe(tokens)
        self.inference.observe(inference_s)


class Metrics:
    """All that the daemon counts. failures: by model and code. web: what the web workers have reported."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self.failures: dict[tuple[str, str], int] = defaultdict(int)
        self.failures.update({("", code): 0 for code in CODES})
        self.dropped: dict[str, int] = dict.fromkeys(DROPPED, 0)
        self.web = WebCounts()

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one model, made on first use."""
        known = self.models.get(name)
        if known is None:
            known = self.models[name] = ModelMetrics()
            self.failures.update({(name, code): 0 for code in CODES})
            self.web.tokenized(name)
        return known

    def counters(self) -> dict[str, int]:
        """The totals for the status document."""
        models = self.models.values()
        totals = {
            "requests": sum(m.requests for m in models),
            "items": sum(m.items for m in models),
            "success": sum(m.success for m in models),
            "batches": sum(sum(m.batch_items.counts) for m in models),
            "retries": sum(m.retries for m in models),
            "failures": sum(self.failures.values()),
        }
        return totals | {f"dropped_{reason}": n for reason, n in self.dropped.items()}

    def series(self) -> Iterator[tuple[str, Series]]:
        """Every counted family, by its name without the prefix."""
        for name in ("requests", "items", "success", "retries"):
            yield f"{name}_total", {(m,): getattr(about, name) for m, about in self.models.items()}
        yield "failures_total", self.failures
        yield "dropped_total", {(reason,): n for reason, n in self.dropped.items()}
        here = {(name, "daemon"): about.tokenize for name, about in self.models.items()}
        web = {(name, "web"): histogram for name, histogram in self.web.tokenize.items()}
        yield "tokenize_duration_seconds", here | web
        for name, series in HISTOGRAMS.items():
            yield name, {(m,): getattr(about, series) for m, about in self.models.items()}
        yield from self.web.series()


HISTOGRAMS = {
    "queue_duration_seconds": "queue",
    "inference_duration_seconds": "inference",
    "request_duration_seconds": "duration",
    "batch_items": "batch_items",
    "batch_tokens": "batch_tokens",
}
