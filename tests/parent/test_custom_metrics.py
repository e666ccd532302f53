"""Metrics that models make, as the server keeps them: spec 1.11, row by row."""

from __future__ import annotations

import math
from typing import Any, List

import pytest
from custom_metrics import exposed, made, refused
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.metrics.custom import COUNTER, GAUGE, HISTOGRAM, CustomMetricError, CustomMetrics

GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should be deleted AFTER "
    "its corresponding 'Metric' objects have been deleted."
)
KINDS = ["COUNTER", "GAUGE", "HISTOGRAM"]


# ---- names ----


@pytest.mark.parametrize("name", ["a", "_", ":", "requests_total", "vllm:tokens", "A1"])
@pytest.mark.parametrize("kind", [COUNTER, GAUGE, HISTOGRAM])
def test_names(name: str, kind: int) -> None:
    metrics = CustomMetrics()
    metrics.family("a", name, "how many", kind)
    (family,) = metrics.collect()
    assert (family.name, family.documentation, family.type, family.samples) == (name, "how many", KINDS[kind].lower(), [])


@pytest.mark.parametrize("name", ["", "1a", "a b", "a-b", "ü", "a\n", "{", "a" * 5000])
def test_what_is_no_name(name: str) -> None:
    with refused(f"Invalid metric name {name[:100]!a}"):
        CustomMetrics().family("a", name, "", COUNTER)


def test_a_family_of_the_same_name_is_the_same(metrics: CustomMetrics) -> None:
    first, second, third = (metrics.family(owner, "requests", owner, COUNTER) for owner in ("a", "b", "a"))
    assert len({first, second, third}) == 3
    (family,) = metrics.collect()
    assert family.documentation == "a"


@pytest.mark.parametrize("owner", ["a", "b"])
@pytest.mark.parametrize("kind", [GAUGE, HISTOGRAM])
def test_a_name_has_one_kind(metrics: CustomMetrics, owner: str, kind: int) -> None:
    first = metrics.family("a", "requests", "", COUNTER)
    with refused("Family name already exists with different type"):
        metrics.family(owner, "requests", "", kind)
    metrics.drop_family("a", first)
    metrics.family(owner, "requests", "", kind)


def test_a_family_lives_while_anyone_has_it(metrics: CustomMetrics) -> None:
    handles = [(owner, metrics.family(owner, "requests", owner, COUNTER)) for owner in ("a", "b", "b")]
    for owner, handle in handles:
        assert [family.documentation for family in metrics.collect()] == ["a"]
        metrics.drop_family(owner, handle)
    assert not list(metrics.collect())


@pytest.fixture
def metrics() -> CustomMetrics:
    return CustomMetrics()


# ---- series ----


def test_the_same_labels_are_the_same_series(metrics: CustomMetrics) -> None:
    handles = [(owner, made(metrics, COUNTER, owner, x="1", y="2")) for owner in ("a", "a", "b")]
    other = made(metrics, COUNTER, "b", x="1")
    for amount, (owner, handle) in enumerate(handles, start=1):
        metrics.increment(owner, handle, amount)
    assert [metrics.value(owner, handle) for owner, handle in handles] == [6.0] * 3
    assert metrics.value("b", other) == 0
    assert exposed(metrics) == {"requests": {(("x", "1"), ("y", "2")): 6.0, (("x", "1"),): 0.0}}


def test_a_series_ends_with_its_last_handle(metrics: CustomMetrics) -> None:
    first, second = made(metrics, COUNTER, "a"), made(metrics, COUNTER, "b")
    metrics.increment("a", first, 5)
    metrics.drop_metric("a", first)
    assert metrics.value("b", second) == 5
    metrics.drop_metric("b", second)
    assert exposed(metrics) == {}
    assert metrics.value("a", made(metrics, COUNTER, "a")) == 0


@pytest.mark.parametrize(
    "labels", [{"a b": ""}, {"": ""}, {"__a": ""}, {"1": ""}, {"ü": ""}, {"a:b": ""}, {1: ""}, {None: ""}, {"a" * 5000: ""}]
)
@pytest.mark.parametrize("kind", [COUNTER, HISTOGRAM])
def test_what_is_no_label(metrics: CustomMetrics, labels: Any, kind: int) -> None:
    family = metrics.family("a", "requests", "", kind)
    with pytest.raises(CustomMetricError, match=r"^Invalid label name "):
        metrics.metric("a", family, labels, [] if kind == HISTOGRAM else None)
    assert exposed(metrics) == {}


@pytest.mark.parametrize("value", [None, 1, b"x", "\ud800", "x" * 5000])
def test_what_is_no_value_of_a_label(metrics: CustomMetrics, value: Any) -> None:
    family = metrics.family("a", "requests", "", GAUGE)
    with pytest.raises(CustomMetricError, match=r"^the value of label 'x' "):
        metrics.metric("a", family, {"x": value}, None)


def test_a_histogram_has_a_label_of_its_own(metrics: CustomMetrics) -> None:
    family = metrics.family("a", "requests", "", HISTOGRAM)
    with refused("Invalid label name 'le', which a histogram has of itself"):
        metrics.metric("a", family, {"le": "1"}, [])


# ---- kinds ----

OPERATIONS = {"increment": (COUNTER, GAUGE), "set": (GAUGE,), "observe": (HISTOGRAM,), "value": (COUNTER, GAUGE)}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", [COUNTER, GAUGE, HISTOGRAM])
def test_each_kind_has_its_operations(metrics: CustomMetrics, operation: str, kind: int) -> None:
    handle = made(metrics, kind)
    arguments = ["a", handle] if operation == "value" else ["a", handle, 2]
    if kind in OPERATIONS[operation]:
        getattr(metrics, operation)(*arguments)
    else:
        with refused(f"TRITONSERVER_METRIC_KIND_{KINDS[kind]} does not support {operation.capitalize()}"):
            getattr(metrics, operation)(*arguments)


@pytest.mark.parametrize("value", [-1, -0.5, -math.inf, math.nan])
def test_a_counter_only_counts_up(metrics: CustomMetrics, value: float) -> None:
    handle = made(metrics, COUNTER)
    with refused("TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."):
        metrics.increment("a", handle, value)
    assert metrics.value("a", handle) == 0


def test_a_gauge_goes_anywhere(metrics: CustomMetrics) -> None:
    handle = made(metrics, GAUGE)
    for value in (5, -2.5, math.inf, -math.inf):
        metrics.set("a", handle, value)
        assert metrics.value("a", handle) == value
    metrics.set("a", handle, 1)
    metrics.increment("a", handle, -3)
    assert metrics.value("a", handle) == -2
    metrics.set("a", handle, math.nan)
    assert math.isnan(metrics.value("a", handle))


@given(st.lists(st.floats(-5, 5), max_size=20))
def test_a_histogram_counts_what_is_at_most_each_bound(values: List[float]) -> None:
    metrics = CustomMetrics()
    handle = made(metrics, HISTOGRAM, x="1")
    for value in values:
        metrics.observe("a", handle, value)
    found = exposed(metrics)
    assert {dict(labels)["le"]: count for labels, count in found["requests_bucket"].items()} == {
        "1": sum(value <= 1 for value in values),
        "2.5": sum(value <= 2.5 for value in values),
        "+Inf": len(values),
    }
    assert found["requests_count"] == {(("x", "1"),): len(values)}
    assert found["requests_sum"][(("x", "1"),)] == pytest.approx(math.fsum(values))


@pytest.mark.parametrize("value, counts", [(math.inf, [0, 0, 1]), (-math.inf, [1, 1, 1]), (math.nan, [0, 0, 1])])
def test_what_is_no_finite_number_is_counted_too(metrics: CustomMetrics, value: float, counts: List[int]) -> None:
    metrics.observe("a", made(metrics, HISTOGRAM), value)
    found = exposed(metrics)
    assert list(found["requests_bucket"].values()) == counts
    assert str(found["requests_sum"][()]) == str(value)


def test_a_histogram_without_bounds(metrics: CustomMetrics) -> None:
    family = metrics.family("a", "requests", "", HISTOGRAM)
    metrics.observe("a", metrics.metric("a", family, {}, []), 5)
    assert exposed(metrics) == {"requests_bucket": {(("le", "+Inf"),): 1}, "requests_sum": {(): 5}, "requests_count": {(): 1}}


def test_a_series_keeps_its_bounds(metrics: CustomMetrics) -> None:
    family = metrics.family("a", "requests", "", HISTOGRAM)
    for bounds in ([1.0, 2.0], [7.0]):
        metrics.observe("a", metrics.metric("a", family, {}, bounds), 1.5)
    assert exposed(metrics)["requests_bucket"] == {(("le", "1"),): 0, (("le", "2"),): 2, (("le", "+Inf"),): 2}


@pytest.mark.parametrize(
    "kind, buckets, text",
    [
        (HISTOGRAM, None, "Missing required buckets."),
        (HISTOGRAM, "1", "Missing required buckets."),
        (COUNTER, [], "Unexpected buckets found."),
        (GAUGE, [1.0], "Unexpected buckets found."),
        *((HISTOGRAM, buckets, "Bucket Boundaries must be strictly sorted") for buckets in ([2, 1], [1, 1.0], [math.nan], [1.0, math.inf])),
        (HISTOGRAM, ["1"], "the value of a metric must be a number, not str"),
        (HISTOGRAM, [10**400], "the value of a metric must be a number, not int"),
        (HISTOGRAM, list(range(1001)), "more than 1000 buckets"),
    ],
)
def test_wrong_buckets(metrics: CustomMetrics, kind: int, buckets: Any, text: str) -> None:
    family = metrics.family("a", "requests", "", kind)
    with refused(text):
        metrics.metric("a", family, {}, buckets)


# ---- ends ----


@pytest.mark.parametrize("kind", [COUNTER, GAUGE, HISTOGRAM])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_metric_is_useless_without_its_family(metrics: CustomMetrics, kind: int, operation: str) -> None:
    family = metrics.family("a", "requests", "", kind)
    another = metrics.family("a", "requests", "", kind)
    handle = metrics.metric("a", family, {}, [] if kind == HISTOGRAM else None)
    metrics.drop_family("a", family)
    with refused(GONE):
        getattr(metrics, operation)("a", handle, *([] if operation == "value" else [1]))
    assert exposed(metrics) == {}
    metrics.drop_metric("a", handle)
    metrics.drop_family("a", another)


@pytest.mark.parametrize("before", ["drop_family", "drop_metric", None])
def test_when_a_stub_has_ended_all_that_it_held_goes(metrics: CustomMetrics, before: Any) -> None:
    kept = made(metrics, COUNTER, "b", x="1")
    family = metrics.family("a", "requests", "", COUNTER)
    handles = [metrics.metric("a", family, {"x": value}, None) for value in ("1", "2")]
    metrics.increment("a", handles[0], 5)
    if before:
        getattr(metrics, before)("a", family if before == "drop_family" else handles[0])
    metrics.family("a", "other", "", GAUGE)
    metrics.release("a")
    assert exposed(metrics) == {"requests": {(("x", "1"),): 5.0}}
    with refused(f"there is no metric {handles[1]}"):
        metrics.value("a", handles[1])
    metrics.release("b")
    metrics.release("nobody")
    assert not list(metrics.collect()) and not metrics._owners
    with refused(f"there is no metric {kept}"):
        metrics.value("b", kept)
