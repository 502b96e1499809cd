"""Quantiles against sorted values, and the sum of several processes against one."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.bench.histogram import Histogram

WIDTH = math.exp(1 / 200)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(
    st.lists(st.floats(2e-6, 1e3), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_the_value_of_its_rank_within_a_bucket(values: list[float], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    got = filled(values).quantile(share)
    assert exact * (1 - 1e-9) <= got <= exact * WIDTH * (1 + 1e-9)


def test_largest_mean_and_count_are_exact() -> None:
    histogram = filled([0.001, 0.002, 0.006])
    assert histogram.count == 3
    assert histogram.mean_s == pytest.approx(0.003)
    assert histogram.max_s == histogram.quantile(1.0) == 0.006


def test_nothing_has_no_latency() -> None:
    empty = Histogram()
    assert (empty.count, empty.mean_s, empty.quantile(0.99)) == (0, 0.0, 0.0)


def test_values_below_the_floor_count() -> None:
    assert filled([0.0, 1e-9]).count == 2


def test_processes_add_up_to_one() -> None:
    draw = random.Random(3)
    values = [draw.lognormvariate(-5, 1) for _ in range(1000)]
    merged = Histogram()
    for part in (values[:1], values[1:600], values[600:], []):
        merged.merge(filled(part))
    whole = filled(values)
    assert merged.buckets == whole.buckets
    assert merged.max_s == whole.max_s
    assert merged.sum_s == pytest.approx(whole.sum_s)


def test_two_histograms_share_nothing() -> None:
    filled([1.0])
    assert Histogram().count == 0
