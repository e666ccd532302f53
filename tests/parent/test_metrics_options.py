"""``--metrics-config``: what it turns on, and what wrong ones are told."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.metrics.options import FIRST_RESPONSE, MetricsOptions, check_bounds
from tritonclient.grpc import model_config_pb2


@pytest.mark.parametrize(
    "settings, expected",
    [
        ([], {}),
        (["counter_latencies=false"], {"counter_latencies": False}),
        (["counter_latencies=false", "counter_latencies=TRUE"], {}),
        (["summary_latencies=true", "histogram_latencies=1"], {"summary_latencies": True, "histogram_latencies": True}),
        (["summary_quantiles=0.5:0.05,0.99:0.001"], {"summary_quantiles": (0.5, 0.99)}),
        (['summary_quantiles="0:0,1:1"'], {"summary_quantiles": (0.0, 1.0)}),
        (["some,summary_latencies=true", "some,what=ever"], {}),
    ],
)
def test_settings(settings: List[str], expected: Dict[str, Any]) -> None:
    options = MetricsOptions()
    options.read(settings)
    assert options == MetricsOptions(**expected)


@pytest.mark.parametrize(
    "setting, complaint",
    [
        ("counter_latencies", "'counter_latencies' is not of the form <key>=<value>, or <name>,<key>=<value>"),
        ("=true", "'=true' is not of the form <key>=<value>, or <name>,<key>=<value>"),
        (",counter_latencies=true", "',counter_latencies=true' is not of the form <key>=<value>, or <name>,<key>=<value>"),
        ("counter_latencies=maybe", "counter_latencies: 'maybe' is neither true nor false"),
        ("counter_latency=true", "unknown key 'counter_latency'; did you mean counter_latencies?"),
        (
            "x=true",
            "unknown key 'x'; known are counter_latencies, histogram_latencies, summary_latencies, summary_quantiles",
        ),
        ("summary_quantiles=0.5", "summary_quantiles: '0.5' is not of the form <quantile>:<error>, both from 0 to 1"),
        ("summary_quantiles=0.5:0.1,2:0.1", "summary_quantiles: '2:0.1' is not of the form <quantile>:<error>, both from 0 to 1"),
        ("summary_quantiles=", "summary_quantiles: '' is not of the form <quantile>:<error>, both from 0 to 1"),
    ],
)
def test_wrong_settings(setting: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        MetricsOptions().read([setting])
    assert str(caught.value) == complaint


@given(st.lists(st.text(max_size=40) | st.text(max_size=10).map("summary_quantiles={}".format), max_size=3))
def test_any_setting_is_taken_or_a_value_error(settings: List[str]) -> None:
    try:
        MetricsOptions().read(settings)
    except ValueError as error:
        assert str(error)


def config(*buckets: float, family: str = FIRST_RESPONSE) -> Any:
    text = "".join(f"buckets: {bucket}\n" for bucket in buckets)
    control = f'metric_control {{ metric_identifier {{ family: "{family}" }} histogram_options {{ {text} }} }}'
    return text_format.Parse(f"model_metrics {{ {control} }}", model_config_pb2.ModelConfig())


def test_what_is_kept_for_a_model() -> None:
    assert MetricsOptions().latencies(config()) == (None, None)
    histogram, latencies = MetricsOptions(histogram_latencies=True, summary_latencies=True).latencies(config())
    assert histogram is not None and histogram.bounds == (100, 500, 2000, 5000)
    assert latencies is not None and latencies.quantiles == (0.5, 0.9, 0.95, 0.99, 0.999)


def test_a_model_may_have_its_own_buckets() -> None:
    on = MetricsOptions(histogram_latencies=True)
    own, _ = on.latencies(config(1, 2.5))
    other, _ = on.latencies(config(1, 2.5, family="nv_other"))
    assert own is not None and own.bounds == (1, 2.5)
    assert other is not None and other.bounds == (100, 500, 2000, 5000)
    check_bounds(config(1, 2.5), "m")


@pytest.mark.parametrize("buckets", [(2, 1), (1, 1), (1, float("inf")), (float("nan"),)])
def test_wrong_buckets(buckets: List[float]) -> None:
    with pytest.raises(ValueError, match="must be finite, and each above the one before it"):
        check_bounds(config(*buckets), "m")
