"""The text that Prometheus reads: exactly as Triton writes it, and as Prometheus' own parser understands it."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from stublet.parent.metrics.custom import COUNTER, GAUGE, HISTOGRAM, CustomMetrics
from stublet.parent.metrics.exposition import Family, Sample, number, render


class Fixed:
    """Has just these."""

    def __init__(self, *families: Family) -> None:
        self.families = families

    def collect(self) -> Iterable[Family]:
        return self.families


def test_the_form() -> None:
    counters = Family(
        "nv_inference_request_failure",
        "Number of failed inference requests, all batch sizes",
        "counter",
        [
            Sample("nv_inference_request_failure", {"version": "1", "reason": "BACKEND", "model": "M"}, 1),
            Sample("nv_inference_request_failure", {"model": "M", "reason": "OTHER", "version": "1"}, 0.0),
        ],
    )
    gauges = Family("nv_pinned_memory_pool_used_bytes", "Used", "gauge", [Sample("nv_pinned_memory_pool_used_bytes", {}, 2.5)])
    assert render([Fixed(counters, Family("nothing", "", "gauge", [])), Fixed(), Fixed(gauges)]).decode() == (
        "# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes\n"
        "# TYPE nv_inference_request_failure counter\n"
        'nv_inference_request_failure{model="M",reason="BACKEND",version="1"} 1\n'
        'nv_inference_request_failure{model="M",reason="OTHER",version="1"} 0\n'
        "# HELP nv_pinned_memory_pool_used_bytes Used\n"
        "# TYPE nv_pinned_memory_pool_used_bytes gauge\n"
        "nv_pinned_memory_pool_used_bytes 2.5\n"
    )
    assert render([]) == b""


def test_custom_metrics() -> None:
    metrics = CustomMetrics()
    requests = metrics.family("a", "requests", 'how\nmany\\ "all"', COUNTER)
    metrics.increment("a", metrics.metric("a", requests, {"k": 'q"uo\\te\nx', "a": "ü"}, None), 4)
    metrics.metric("a", requests, {}, None)
    sizes = metrics.family("a", "sizes", "sizes", HISTOGRAM)
    observed = metrics.metric("a", sizes, {"model": "M", "z": "1"}, [0.1, 1.0, 2.5, 1e6, 1e21])
    for value in (0.1, 0.5, 7.0):
        metrics.observe("a", observed, value)
    assert render([metrics]).decode() == (
        '# HELP requests how\\nmany\\\\ "all"\n'
        "# TYPE requests counter\n"
        'requests{a="ü",k="q\\"uo\\\\te\\nx"} 4\n'
        "requests 0\n"
        "# HELP sizes sizes\n"
        "# TYPE sizes histogram\n"
        'sizes_bucket{model="M",z="1",le="0.1"} 1\n'
        'sizes_bucket{model="M",z="1",le="1"} 2\n'
        'sizes_bucket{model="M",z="1",le="2.5"} 2\n'
        'sizes_bucket{model="M",z="1",le="1000000"} 3\n'
        'sizes_bucket{model="M",z="1",le="1e+21"} 3\n'
        'sizes_bucket{model="M",z="1",le="+Inf"} 3\n'
        'sizes_sum{model="M",z="1"} 7.6\n'
        'sizes_count{model="M",z="1"} 3\n'
    )


# As the real Triton writes them.
@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (4, "4"), (4.0, "4"), (-3.0, "-3"), (1.5, "1.5"), (1e6, "1000000"), (123456789.125, "123456789.125"), (1e15, "1000000000000000"),
     (2.0**53, "9007199254740992"), (25276510208.0, "25276510208"), (1e21, "1e+21"), (1e-7, "1e-07"), (1 / 3, "0.3333333333333333"),
     (2**70, "1180591620717411303424"), (-0.0, "0"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats() | st.integers(-(2**63), 2**63))
def test_numbers_are_exact(value: float) -> None:
    assert str(float(number(value))) in (str(float(value)), str(float(value)).lstrip("-"))
    assert not number(value).endswith(".0")


LABELS = st.dictionaries(st.from_regex(r"(?!__|le\Z|quantile\Z)[a-z_][a-z0-9_]{0,5}", fullmatch=True), st.text(), max_size=3)


@given(st.text(), st.lists(st.tuples(LABELS, st.floats(0, allow_nan=False)), unique_by=lambda pair: str(sorted(pair[0].items()))))
def test_prometheus_reads_it_back(description: str, series: List[Any]) -> None:
    metrics = CustomMetrics()
    for name, kind in (("counts", COUNTER), ("level", GAUGE), ("sizes", HISTOGRAM)):
        family = metrics.family("a", name, description, kind)
        for labels, value in series:
            metric = metrics.metric("a", family, labels, [0.5, 1.0] if kind == HISTOGRAM else None)
            (metrics.observe if kind == HISTOGRAM else metrics.increment)("a", metric, value)
    found = {family.name: family for family in text_string_to_metric_families(render([metrics]).decode())}
    if not series:
        assert not found
        return
    kinds: Dict[str, str] = {name: family.type for name, family in found.items()}
    assert kinds == {"counts": "counter", "level": "gauge", "sizes": "histogram"}
    for name in ("counts", "level"):
        assert [(sample.labels, sample.value) for sample in found[name].samples] == series
    sums = [(sample.labels, sample.value) for sample in found["sizes"].samples if sample.name == "sizes_sum"]
    assert sums == series
    buckets = [sample.value for sample in found["sizes"].samples if sample.labels.get("le") == "1"]
    assert buckets == [float(value <= 1) for _, value in series]
