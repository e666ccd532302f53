"""Distributions of latencies: buckets, and quantiles of the last minute."""

from __future__ import annotations

import math
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.metrics.latency import Histogram, Quantiles

SECOND = 10**9


@given(st.lists(st.floats(0, 1e6), max_size=50), st.lists(st.floats(0, 1e6), max_size=5, unique=True).map(sorted))
def test_buckets_count_what_is_not_above_them(values: List[float], bounds: List[float]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert histogram.buckets() == [*(sum(value <= bound for value in values) for bound in bounds), len(values)]
    assert histogram.sum == pytest.approx(sum(values))


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent(values: List[int], quantile: float) -> None:
    quantiles = Quantiles()
    for value in values:
        quantiles.observe(value, 0)
    (found,) = quantiles.values([quantile], 0)
    exact = sorted(values)[int(quantile * (len(values) - 1))]
    assert found == pytest.approx(exact, rel=0.0101, abs=1e-6)
    assert (quantiles.count, quantiles.sum) == (len(values), sum(values))


def test_only_the_last_minute_counts() -> None:
    quantiles = Quantiles()
    quantiles.observe(1000, 100 * SECOND)
    for second in (113, 130, 147):
        quantiles.observe(10, second * SECOND)
    assert quantiles.values([1.0], 147 * SECOND) == [pytest.approx(1000, rel=0.01)]
    assert quantiles.values([1.0], 161 * SECOND) == [pytest.approx(10, rel=0.01)]
    assert math.isnan(quantiles.values([0.5], 300 * SECOND)[0])
    assert (quantiles.count, quantiles.sum) == (4, 1030)
    quantiles.observe(7, 10**6 * SECOND)
    assert quantiles.values([0.5], 10**6 * SECOND) == [pytest.approx(7, rel=0.01)]
