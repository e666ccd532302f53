"""What the metrics port is to show: ``--metrics-config`` and its kin (spec 7)."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any, Optional, Sequence, Tuple

from .latency import Histogram, Latencies

_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)

FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"

_SWITCHES = ("counter_latencies", "histogram_latencies", "summary_latencies")
_SETTINGS = (*_SWITCHES, "summary_quantiles")
_BOOLEANS = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


@dataclass(slots=True)
class MetricsOptions:
    """``interval_ms``: how often the machine's metrics are taken. ``cpu``, ``gpu``: whether they are. ``counter_latencies``: durations as
    counters. ``histogram_latencies``, ``summary_latencies``: distributions of them. ``summary_quantiles``: which quantiles."""

    interval_ms: float = 2000
    cpu: bool = True
    gpu: bool = True
    counter_latencies: bool = True
    histogram_latencies: bool = False
    summary_latencies: bool = False
    summary_quantiles: Tuple[float, ...] = _QUANTILES

    def read(self, settings: Sequence[str]) -> None:
        """Takes ``--metrics-config`` settings, ``<key>=<value>`` each. One that is given for a name, ``<name>,<key>=<value>``, has no
        effect, as in Triton, which has no metrics under names.

        Raises:
            ValueError: what is wrong.
        """
        for setting in settings:
            name, comma, rest = setting.partition(",") if "," in setting.partition("=")[0] else ("", "", setting)
            key, equals, value = rest.partition("=")
            if (comma and not name) or not equals or not key:
                raise ValueError(f"'{setting}' is not of the form <key>=<value>, or <name>,<key>=<value>")
            if name:
                continue
            if key in _SWITCHES:
                setattr(self, key, _boolean(key, value))
            elif key == "summary_quantiles":
                self.summary_quantiles = _quantiles(value)
            else:
                near = get_close_matches(key, _SETTINGS, 1)
                raise ValueError(f"unknown key '{key}'; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(_SETTINGS)}"))

    def latencies(self, config: Any) -> Tuple[Optional[Histogram], Optional[Latencies]]:
        """What distributions are to be kept for a model of that configuration."""
        histogram = Histogram(_bounds(config)) if self.histogram_latencies else None
        return histogram, Latencies(self.summary_quantiles) if self.summary_latencies else None


def _boolean(key: str, text: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise ValueError(f"{key}: '{text}' is neither true nor false")
    return value


def _quantiles(text: str) -> Tuple[float, ...]:
    """``<quantile>:<error>,...``. The errors are checked and have no effect: every quantile is within 1 % of its value."""
    found = []
    for pair in text.strip('"').split(","):
        quantile, colon, error = pair.partition(":")
        try:
            numbers = float(quantile), float(error)
        except ValueError:
            numbers = (-1.0, -1.0)
        if not colon or not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"summary_quantiles: '{pair}' is not of the form <quantile>:<error>, both from 0 to 1")
        found.append(numbers[0])
    return tuple(found)


def _bounds(config: Any) -> Tuple[float, ...]:
    """The buckets of a model's histogram: those of ``model_metrics``, or the usual ones. ``check_bounds`` has been called."""
    bounds = _BOUNDS_MS
    for control in config.model_metrics.metric_control:
        if control.metric_identifier.family == FIRST_RESPONSE and control.histogram_options.buckets:
            bounds = tuple(control.histogram_options.buckets)
    return bounds


def check_bounds(config: Any, name: str) -> None:
    """Checks the buckets that a configuration asks for.

    Raises:
        ValueError: what is wrong.
    """
    bounds = _bounds(config)
    if not all(map(isfinite, bounds)) or any(low >= high for low, high in zip(bounds, bounds[1:])):
        raise ValueError(
            f"model_metrics: the buckets of {FIRST_RESPONSE} must be finite, and each above the one before it (model '{name}')"
        )
