"""Metrics are valid Prometheus text, and every series is there before anything happens."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gpu_server.daemon.metrics import SECONDS, Histogram, Metrics
from gpu_server.errors import RemoteError

GAUGES = {"queue_items": ("items waiting", 3.0)}


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Value by series name and its labels, the bucket last."""
    families = text_string_to_metric_families(metrics.render(GAUGES))
    return {
        (s.name, *(s.labels[key] for key in ("model", "code", "reason", "le") if key in s.labels)): s.value
        for family in families
        for s in family.samples
    }


def test_every_series_exists_at_once() -> None:
    metrics = Metrics()
    metrics.model("m")
    values = samples(metrics)
    names = {name for name, *_ in values}
    for histogram in (
        "queue_duration_seconds",
        "inference_duration_seconds",
        "request_duration_seconds",
        "batch_items",
        "batch_tokens",
    ):
        assert {f"gpu_server_{histogram}_{part}" for part in ("bucket", "sum", "count")} <= names
        assert values[f"gpu_server_{histogram}_count", "m"] == 0
    for counter in ("requests", "items", "success"):
        assert values[f"gpu_server_{counter}_total", "m"] == 0
    for code in {kind.code for kind in RemoteError.__subclasses__()}:
        assert values["gpu_server_failures_total", code] == 0
    for reason in ("unreadable", "peer_gone", "peer_slow", "late_result"):
        assert values["gpu_server_dropped_total", reason] == 0
    assert values["gpu_server_queue_items",] == 3


def test_what_is_counted_is_shown() -> None:
    metrics = Metrics()
    about = metrics.model('odd "name"\n\\')
    about.requests, about.items = 2, 7
    about.batch_items.observe(3)
    about.batch_items.observe(4)
    metrics.failures["overloaded"] += 1
    metrics.dropped["peer_gone"] += 2
    values = samples(metrics)
    name = 'odd "name"\n\\'
    assert values["gpu_server_requests_total", name] == 2
    assert values["gpu_server_batch_items_sum", name] == 7
    assert values["gpu_server_batch_items_bucket", name, "2"] == 0
    assert values["gpu_server_batch_items_bucket", name, "4"] == 2
    assert values["gpu_server_batch_items_bucket", name, "+Inf"] == 2
    assert values["gpu_server_failures_total", "overloaded"] == 1
    assert metrics.counters() == {
        "requests": 2,
        "items": 7,
        "success": 0,
        "batches": 2,
        "failures": 1,
        "dropped_unreadable": 0,
        "dropped_peer_gone": 2,
        "dropped_peer_slow": 0,
        "dropped_late_result": 0,
    }


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram(SECONDS)
    for value in (0.0, SECONDS[0], SECONDS[-1], 1e9):
        histogram.observe(value)
    buckets = dict(histogram.buckets())
    assert len(buckets) == len(SECONDS) + 1
    assert (buckets["0.0001"], buckets["13.1072"], buckets["+Inf"]) == (2, 3, 4)


def test_a_model_keeps_its_numbers_over_a_reload() -> None:
    metrics = Metrics()
    metrics.model("m").requests = 5
    assert metrics.model("m").requests == 5
