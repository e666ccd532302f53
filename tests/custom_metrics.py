"""Metrics that models make, and what is seen of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Dict, Iterator, Tuple

import pytest
from stublet.parent.metrics.custom import HISTOGRAM, CustomMetricError, CustomMetrics


@contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(CustomMetricError) as raised:
        yield
    assert str(raised.value) == text


def exposed(metrics: CustomMetrics) -> Dict[str, Dict[Tuple[Tuple[str, str], ...], float]]:
    """The values, by name and by labels."""
    found: Dict[str, Dict[Tuple[Tuple[str, str], ...], float]] = {}
    for family in metrics.collect():
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def made(metrics: CustomMetrics, kind: int, owner: str = "a", **labels: str) -> int:
    family = metrics.family(owner, "requests", "how many", kind)
    return metrics.metric(owner, family, labels, [1.0, 2.5] if kind == HISTOGRAM else None)
