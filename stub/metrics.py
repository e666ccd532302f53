"""``pb_utils.MetricFamily`` and the ``Metric`` objects that it makes (spec 1.11).

Whatever can be checked is checked here, so that changing a metric is one message that nobody waits for.
"""

from __future__ import annotations

import math
import weakref
from enum import IntEnum
from typing import Any, ClassVar, Dict, List, Optional

from .error import TritonModelException
from .host import ask, host, refusal

_FAMILY_GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should be deleted AFTER "
    "its corresponding 'Metric' objects have been deleted."
)


class MetricKind(IntEnum):
    """The number is what travels."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class MetricFamily:
    """Metrics of one name, exposed by the server for as long as this object lives. Several instances may make the same one.

    Args:
        name: a name in Prometheus' grammar.
        description: the HELP line; that of the first family of the name is kept.
        kind: MetricFamily.COUNTER, GAUGE or HISTOGRAM.

    Raises:
        TypeError: an argument of a wrong Python type.
        TritonModelException: not a name, or there is a family of that name and another kind.
    """

    COUNTER: ClassVar[MetricKind] = MetricKind.COUNTER
    GAUGE: ClassVar[MetricKind] = MetricKind.GAUGE
    HISTOGRAM: ClassVar[MetricKind] = MetricKind.HISTOGRAM

    __slots__ = ("__weakref__", "_id", "_kind")

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        for what, text in (("name", name), ("description", description)):
            if not isinstance(text, str):
                raise TypeError(f"MetricFamily: {what} must be str, not {type(text).__name__}")
        if not isinstance(kind, MetricKind):
            raise TypeError(f"MetricFamily: kind must be one of MetricFamily's kinds, not {type(kind).__name__}")
        self._id = ask("Error when creating MetricFamily: ", "metric.family", name, description, kind.value)
        self._kind = kind
        weakref.finalize(self, host.tell, "metric.drop_family", self._id).atexit = False

    def Metric(self, labels: Optional[Dict[str, str]] = None, buckets: Optional[List[float]] = None) -> _Metric:
        """The series with these labels. It can be used as long as both it and this family are referenced.

        Args:
            labels: str to str. Metrics with the same labels are the same series.
            buckets: for a histogram, which needs them: upper bounds in ascending order, without +Inf, which every histogram has.

        Raises:
            TypeError: a bucket that is not a number.
            TritonModelException: labels or buckets that are wrong, as the text says.
        """
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None:
            if not isinstance(buckets, list):
                raise TritonModelException("Failed to create metric. Buckets must be a list.")
            if self._kind is not MetricKind.HISTOGRAM:
                raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        elif self._kind is MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        return Metric(self, dict(labels or {}), buckets)


class Metric:
    """One series of a family; see ``MetricFamily.Metric``, which makes it. Its methods may be called in any thread.

    Raises (all methods):
        TypeError: the value is not a number.
        TritonModelException: not with this kind of metric, or its family has been deleted.
    """

    __slots__ = ("__weakref__", "_family", "_id", "_kind")

    def __init__(self, family: MetricFamily, labels: Dict[str, str], buckets: Optional[List[float]]) -> None:
        prefix = "Error when creating Metric: "
        for key, value in labels.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TritonModelException(refusal(prefix, f"Labels must be strings, found {key!r}: {value!r}"))
        bounds = None if buckets is None else _bounds(prefix, buckets)
        self._id = ask(prefix, "metric.metric", family._id, labels, bounds)
        self._kind = family._kind
        # Weak, because a family lives as long as the model keeps it.
        self._family = weakref.ref(family)
        weakref.finalize(self, host.tell, "metric.drop_metric", self._id).atexit = False

    def increment(self, value: float) -> None:
        """Adds ``value``, which for a counter must not be negative."""
        if type(value) is not float:
            value = _number(".increment: the value", value)
        if self._family() is None or self._kind is MetricKind.HISTOGRAM:
            raise self._impossible("increment", "Increment")
        if self._kind is MetricKind.COUNTER and not value >= 0:  # nor NaN
            reason = "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
            raise TritonModelException(refusal("Failed to increment metric value: ", reason))
        host.tell("metric.increment", self._id, value)

    def set(self, value: float) -> None:
        """Sets a gauge."""
        if type(value) is not float:
            value = _number(".set: the value", value)
        if self._family() is None or self._kind is not MetricKind.GAUGE:
            raise self._impossible("set", "Set")
        host.tell("metric.set", self._id, value)

    def observe(self, value: float) -> None:
        """Counts ``value`` in a histogram."""
        if type(value) is not float:
            value = _number(".observe: the value", value)
        if self._family() is None or self._kind is not MetricKind.HISTOGRAM:
            raise self._impossible("observe", "Observe")
        host.tell("metric.observe", self._id, value)

    def value(self) -> float:
        """The value of a counter or gauge, to which all instances of the series have added."""
        if self._family() is None or self._kind is MetricKind.HISTOGRAM:
            raise self._impossible("get", "Value")
        return float(ask("Failed to get metric value: ", "metric.value", self._id))

    def _impossible(self, verb: str, operation: str) -> TritonModelException:
        prefix = f"Failed to {verb} metric value: "
        if self._family() is None:
            return TritonModelException(prefix + _FAMILY_GONE)
        return TritonModelException(refusal(prefix, f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support {operation}"))


_Metric = Metric  # within MetricFamily, Metric is its method


def _number(what: str, value: Any) -> float:
    """What numpy and Python take for a number. Not text, although ``float`` would parse it."""
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"Metric{what} must be a number, not {type(value).__name__}")


def _bounds(prefix: str, buckets: List[float]) -> List[float]:
    bounds = [_number(": a bucket", bound) for bound in buckets]
    if bounds and bounds[-1] == math.inf:
        bounds.pop()
    if any(not low < high for low, high in zip(bounds, [*bounds[1:], math.inf])):
        raise TritonModelException(refusal(prefix, "Bucket Boundaries must be strictly sorted"))
    return bounds
