"""Metrics are valid Prometheus text, and every series is there before anything happens."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.metrics.families import FAMILIES, PREFIX, SECONDS
from gpu_server.daemon.metrics.histogram import Histogram, quantile
from gpu_server.daemon.metrics.text import render
from gpu_server.errors import RemoteError


def text_of(metrics: Metrics, tei: bool = False) -> str:
    """The text of what is counted; families that others fill are empty."""
    series: dict[str, Any] = {family.name.removeprefix(PREFIX): {} for family in FAMILIES}
    return render(series | {"queue_items": {(): 3}} | dict(metrics.series()), tei)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Value by series name and the values of its labels, the bucket last."""
    families = text_string_to_metric_families(text_of(metrics))
    order = ("model", "where", "route", "status", "code", "reason", "le")
    return {
        (s.name, *(s.labels[key] for key in order if key in s.labels)): s.value
        for family in families
        for s in family.samples
    }


def test_every_family_is_declared_once_and_follows_the_naming_rules() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert bool(family.bounds) == (family.kind == "histogram")


def test_every_series_exists_at_once() -> None:
    metrics = Metrics()
    metrics.model("m")
    values = samples(metrics)
    per_model = [f for f in FAMILIES if f.labels == ("model",)]
    assert len(per_model) == 9
    for family in per_model:
        if family.kind == "histogram":
            assert values[f"{family.name}_count", "m"] == values[f"{family.name}_bucket", "m", "+Inf"] == 0
        else:
            assert values[family.name, "m"] == 0
    for where in ("daemon", "web"):
        assert values["gpu_server_tokenize_duration_seconds_count", "m", where] == 0
    for code in {kind.code for kind in RemoteError.__subclasses__()}:
        assert values["gpu_server_failures_total", "", code] == 0
        assert values["gpu_server_failures_total", "m", code] == 0
    for reason in (
        "unreadable",
        "peer_gone",
        "peer_slow",
        "peer_refused",
        "key_refused",
        "late_result",
        "report",
    ):
        assert values["gpu_server_dropped_total", reason] == 0
    assert values["gpu_server_queue_items",] == 3


def test_what_is_counted_is_shown() -> None:
    metrics = Metrics()
    name = 'odd "name"\n\\'
    about = metrics.model(name)
    about.accepted(3)
    about.accepted(4)
    about.answered(0.25, 0.001)
    about.ran(3, 100, 0.5)
    about.ran(4, 100, 0.5)
    metrics.failures[name, "overloaded"] += 1
    metrics.dropped["peer_gone"] += 2
    values = samples(metrics)
    assert values["gpu_server_requests_total", name] == 2
    assert values["gpu_server_items_total", name] == 7
    assert values["gpu_server_request_duration_seconds_sum", name] == 0.25
    assert values["gpu_server_queue_duration_seconds_sum", name] == 0.001
    assert values["gpu_server_inference_duration_seconds_sum", name] == 1.0
    assert values["gpu_server_batch_items_sum", name] == 7
    assert values["gpu_server_batch_items_bucket", name, "2"] == 0
    assert values["gpu_server_batch_items_bucket", name, "4"] == 2
    assert values["gpu_server_batch_items_bucket", name, "+Inf"] == 2
    assert values["gpu_server_failures_total", name, "overloaded"] == 1
    assert metrics.counters() == {
        "requests": 2,
        "items": 7,
        "success": 1,
        "batches": 2,
        "retries": 0,
        "failures": 1,
        "dropped_unreadable": 0,
        "dropped_peer_gone": 2,
        "dropped_peer_slow": 0,
        "dropped_peer_refused": 0,
        "dropped_key_refused": 0,
        "dropped_late_result": 0,
        "dropped_report": 0,
    }


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram(SECONDS)
    for value in (0.0, SECONDS[0], SECONDS[-1], 1e9):
        histogram.observe(value)
    cumulative = histogram.cumulative()
    assert len(cumulative) == len(SECONDS) + 1
    assert (cumulative[0], cumulative[-2], cumulative[-1]) == (2, 3, 4)


def test_a_model_keeps_its_numbers_over_a_reload() -> None:
    metrics = Metrics()
    metrics.model("m").requests = 5
    assert metrics.model("m").requests == 5


def test_names_of_text_embeddings_inference_say_the_same() -> None:
    metrics = Metrics()
    metrics.model("m").accepted(2)
    text = text_of(metrics, tei=True)
    assert 'te_request_count{model="m"} 1' in text
    assert "te_queue_size 3" in text
    assert 'te_request_duration_count{model="m"} 0' in text
    assert "\nte_" not in text_of(metrics)


@pytest.mark.parametrize(
    ("counts", "q", "expected"),
    [
        ([0, 0, 0, 0], 0.5, 0.0),
        ([0, 10, 0, 0], 0.5, 1.5),
        ([10, 0, 0, 0], 1.0, 1.0),
        ([5, 0, 5, 0], 0.75, 3.0),
        ([0, 0, 0, 7], 0.5, 4.0),
    ],
)
def test_quantiles_are_interpolated_within_a_bucket(counts: list[int], q: float, expected: float) -> None:
    assert quantile((1.0, 2.0, 4.0), counts, q) == expected
