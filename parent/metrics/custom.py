"""Metrics that models make (spec 1.11): what their stubs hold handles of, and the series that these stand for.

A family is known by its name and lives while any stub holds a handle of it; a series is known by its labels and lives while any handle
of a metric stands for it, so that instances that name the same series add to the same number. Only numbered handles come from
outside, and each belongs to its owner.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any, Callable, Container, Dict, Hashable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .exposition import Family, Sample, histogram_samples

_KINDS = ("counter", "gauge", "histogram")
COUNTER, GAUGE, HISTOGRAM = range(len(_KINDS))

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

# Far beyond what is sensible: they only keep one stub from filling the server's memory.
_MOST_HANDLES = 100_000
_MOST_PARTS = 1000
_LONGEST_TEXT = 4096

_FAMILY_GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should be deleted AFTER "
    "its corresponding 'Metric' objects have been deleted."
)

Labels = Tuple[Tuple[str, str], ...]


class CustomMetricError(Exception):
    """A model, or its stub, asks for something that cannot be; the text is for the model."""


@dataclass(slots=True)
class _Series:
    labels: Labels
    bounds: Tuple[float, ...]
    counts: List[int]  # of a histogram: one for each bound and one beyond
    value: float = 0.0  # of a histogram: the sum
    handles: int = 0


@dataclass(slots=True)
class _Family:
    name: str
    description: str
    kind: int
    series: Dict[Labels, _Series] = field(default_factory=dict)
    handles: int = 0


@dataclass(slots=True)
class _FamilyHandle:
    family: _Family
    metrics: Set[int] = field(default_factory=set)


@dataclass(slots=True)
class _MetricHandle:
    """``series`` is None once the family's handle is gone: whoever uses the metric then is told."""

    family: int
    kind: int
    series: Optional[_Series]


@dataclass(slots=True)
class _Owner:
    families: Dict[int, _FamilyHandle] = field(default_factory=dict)
    metrics: Dict[int, _MetricHandle] = field(default_factory=dict)


class CustomMetrics:
    """All of a server's. Arguments other than ``owner`` come from stubs and are not trusted.

    Args:
        reserved: names of the server's own metrics, which a second family of that name would make unreadable.

    Raises (all methods but ``release`` and ``collect``):
        CustomMetricError: with the reason.
    """

    def __init__(self, reserved: Container[str] = ()) -> None:
        self._reserved = reserved
        self._ids = itertools.count(1)
        self._families: Dict[str, _Family] = {}
        self._owners: Dict[Hashable, _Owner] = {}
        self._operations: Mapping[object, Tuple[Callable[..., Any], int]] = {
            "metric.family": (self.family, 3),
            "metric.metric": (self.metric, 3),
            "metric.value": (self.value, 1),
            "metric.increment": (self.increment, 2),
            "metric.set": (self.set, 2),
            "metric.observe": (self.observe, 2),
            "metric.drop_family": (self.drop_family, 1),
            "metric.drop_metric": (self.drop_metric, 1),
        }

    def perform(self, owner: Hashable, what: object, arguments: Sequence[object]) -> Any:
        """The operation that a stub names, with the arguments that it gives; returns what that returns."""
        operation, count = self._operations.get(what, (None, 0)) if isinstance(what, str) else (None, 0)
        if operation is None or len(arguments) != count:
            raise CustomMetricError(f"there is no metric operation {_shown(what)} with {len(arguments)} arguments")
        return operation(owner, *arguments)

    def family(self, owner: Hashable, name: object, description: object, kind: object) -> int:
        """A handle of the family of that name. The first description is kept."""
        if not isinstance(name, str) or len(name) > _LONGEST_TEXT or not _METRIC_NAME.fullmatch(name):
            raise CustomMetricError(f"Invalid metric name {_shown(name)}")
        if name in self._reserved:
            raise CustomMetricError(f"'{name}' is a metric of the server's")
        text = _text("the description of a metric", description)
        if type(kind) is not int or not 0 <= kind < len(_KINDS):
            raise CustomMetricError(f"Unknown metric kind {_shown(kind)}")
        found = self._families.get(name)
        if found is not None and found.kind != kind:
            raise CustomMetricError("Family name already exists with different type")
        new, held = self._new_handle(owner)
        family = self._families.setdefault(name, _Family(name, text, kind))
        family.handles += 1
        held.families[new] = _FamilyHandle(family)
        return new

    def metric(self, owner: Hashable, family: object, labels: object, buckets: object) -> int:
        """A handle of the series of a family with these labels. ``buckets``: bounds of a histogram, None for the other kinds; those
        that a series was made with are kept."""
        held, number = self._family_of(owner, family)
        handle = held.families[number]
        kind = handle.family.kind
        key, bounds = _checked_labels(labels, kind), _checked_buckets(buckets, kind)
        new, _ = self._new_handle(owner)
        series = handle.family.series.setdefault(key, _Series(key, bounds, [0] * (len(bounds) + 1) if kind == HISTOGRAM else []))
        series.handles += 1
        handle.metrics.add(new)
        held.metrics[new] = _MetricHandle(number, kind, series)
        return new

    def increment(self, owner: Hashable, metric: object, value: object) -> None:
        """Adds to a counter or gauge."""
        kind, series = self._live(owner, metric)
        amount = _checked_number(value)
        if kind == HISTOGRAM:
            raise _unsupported(kind, "Increment")
        if kind == COUNTER and not amount >= 0:  # nor NaN, which would never leave the sum
            raise CustomMetricError("TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values.")
        series.value += amount

    def set(self, owner: Hashable, metric: object, value: object) -> None:
        """Sets a gauge."""
        kind, series = self._live(owner, metric)
        if kind != GAUGE:
            raise _unsupported(kind, "Set")
        series.value = _checked_number(value)

    def observe(self, owner: Hashable, metric: object, value: object) -> None:
        """Counts a value in a histogram; NaN lies beyond every bound."""
        kind, series = self._live(owner, metric)
        if kind != HISTOGRAM:
            raise _unsupported(kind, "Observe")
        observed = _checked_number(value)
        series.counts[-1 if math.isnan(observed) else bisect_left(series.bounds, observed)] += 1
        series.value += observed

    def value(self, owner: Hashable, metric: object) -> float:
        """The value of a counter or gauge."""
        kind, series = self._live(owner, metric)
        if kind == HISTOGRAM:
            raise _unsupported(kind, "Value")
        return series.value

    def drop_family(self, owner: Hashable, family: object) -> None:
        """The stub no longer has that handle; the metrics that it made with it are of no more use."""
        held, number = self._family_of(owner, family)
        handle = held.families.pop(number)
        for metric in handle.metrics:
            self._let_go(handle.family, held.metrics[metric])
        handle.family.handles -= 1
        if not handle.family.handles:
            del self._families[handle.family.name]

    def drop_metric(self, owner: Hashable, metric: object) -> None:
        """The stub no longer has that handle."""
        held, number = self._metric_of(owner, metric)
        handle = held.metrics.pop(number)
        if handle.series is not None:
            family = held.families[handle.family]
            family.metrics.discard(number)
            self._let_go(family.family, handle)

    def release(self, owner: Hashable) -> None:
        """The stub has ended: all that it held goes."""
        held = self._owners.get(owner, _Owner())
        for family in tuple(held.families):
            self.drop_family(owner, family)
        self._owners.pop(owner, None)

    def collect(self) -> Iterator[Family]:
        """What is to be exposed."""
        for family in self._families.values():
            samples: List[Sample] = []
            for series in family.series.values():
                labels = dict(series.labels)
                if family.kind == HISTOGRAM:
                    buckets = list(itertools.accumulate(series.counts))
                    samples += histogram_samples(family.name, labels, series.bounds, buckets, series.value)
                else:
                    samples.append(Sample(family.name, labels, series.value))
            yield Family(family.name, family.description, _KINDS[family.kind], samples)

    def _new_handle(self, owner: Hashable) -> Tuple[int, _Owner]:
        held = self._owners.setdefault(owner, _Owner())
        if len(held.families) + len(held.metrics) >= _MOST_HANDLES:
            raise CustomMetricError(f"there are {_MOST_HANDLES} metrics already; delete those that are no longer used")
        return next(self._ids), held

    def _family_of(self, owner: Hashable, family: object) -> Tuple[_Owner, int]:
        held = self._owners.get(owner)
        if held is None or type(family) is not int or family not in held.families:
            raise CustomMetricError(f"there is no metric family {_shown(family)}")
        return held, family

    def _metric_of(self, owner: Hashable, metric: object) -> Tuple[_Owner, int]:
        held = self._owners.get(owner)
        if held is None or type(metric) is not int or metric not in held.metrics:
            raise CustomMetricError(f"there is no metric {_shown(metric)}")
        return held, metric

    def _live(self, owner: Hashable, metric: object) -> Tuple[int, _Series]:
        held, number = self._metric_of(owner, metric)
        handle = held.metrics[number]
        if handle.series is None:
            raise CustomMetricError(_FAMILY_GONE)
        return handle.kind, handle.series

    @staticmethod
    def _let_go(family: _Family, handle: _MetricHandle) -> None:
        series, handle.series = handle.series, None
        assert series is not None
        series.handles -= 1
        if not series.handles:
            del family.series[series.labels]


def _unsupported(kind: int, operation: str) -> CustomMetricError:
    return CustomMetricError(f"TRITONSERVER_METRIC_KIND_{_KINDS[kind].upper()} does not support {operation}")


def _shown(value: object) -> str:
    """What was given instead, for a text."""
    if isinstance(value, str):
        return ascii(value[:100])
    return str(value) if type(value) is int and abs(value) < 1 << 64 else f"of type {type(value).__name__}"


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise CustomMetricError(f"{what} must be a string, not {type(value).__name__}")
    if len(value) > _LONGEST_TEXT:
        raise CustomMetricError(f"{what} has more than {_LONGEST_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CustomMetricError(f"{what} is not Unicode: {_shown(value)}") from None
    return value


def _checked_labels(labels: object, kind: int) -> Labels:
    if not isinstance(labels, dict):
        raise CustomMetricError(f"labels must be a dictionary, not {type(labels).__name__}")
    if len(labels) > _MOST_PARTS:
        raise CustomMetricError(f"more than {_MOST_PARTS} labels")
    checked: List[Tuple[str, str]] = []
    for name, value in labels.items():
        if not isinstance(name, str) or len(name) > _LONGEST_TEXT or not _LABEL_NAME.fullmatch(name):
            raise CustomMetricError(f"Invalid label name {_shown(name)}")
        if kind == HISTOGRAM and name == "le":
            raise CustomMetricError("Invalid label name 'le', which a histogram has of itself")
        checked.append((name, _text(f"the value of label '{name}'", value)))
    return tuple(sorted(checked))


def _checked_buckets(buckets: object, kind: int) -> Tuple[float, ...]:
    if kind != HISTOGRAM:
        if buckets is not None:
            raise CustomMetricError("Unexpected buckets found.")
        return ()
    if not isinstance(buckets, (list, tuple)):
        raise CustomMetricError("Missing required buckets.")
    if len(buckets) > _MOST_PARTS:
        raise CustomMetricError(f"more than {_MOST_PARTS} buckets")
    bounds = tuple(map(_checked_number, buckets))
    if not all(low < high for low, high in zip(bounds, (*bounds[1:], math.inf))):
        raise CustomMetricError("Bucket Boundaries must be strictly sorted")
    return bounds


def _checked_number(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise CustomMetricError(f"the value of a metric must be a number, not {type(value).__name__}")
