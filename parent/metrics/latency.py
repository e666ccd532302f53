"""Distributions of latencies, for those who turn them on (spec 7): histograms and sliding summaries of one model version."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from ddsketch import DDSketch

_ACCURACY = 0.01
"""A quantile is within this share of the true value."""

_WINDOW_NS = 60 * 10**9
_SLICES = 5


class Histogram:
    """Counts values by upper bounds, which are sorted and distinct; beyond the last of them lies +Inf."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> List[int]:
        """How many values are not above each bound, and, last, how many there are."""
        return list(accumulate(self._counts))


class Quantiles:
    """Quantiles of what was observed within the last minute, in steps of 12 seconds; ``count`` and ``sum`` of all there ever was."""

    __slots__ = ("_began", "_slices", "count", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0
        self._slices: List[DDSketch] = [_sketch()]
        self._began = 0

    def observe(self, value: int, now: int) -> None:
        """
        Args:
            now: ``perf_counter_ns``.
        """
        self._turn(now)
        self._slices[-1].add(value)
        self.count += 1
        self.sum += value

    def values(self, quantiles: Sequence[float], now: int) -> List[float]:
        """NaN where nothing was observed lately."""
        self._turn(now)
        merged = _sketch()
        for sketch in self._slices:
            merged.merge(sketch)
        found: List[Optional[float]] = [merged.get_quantile_value(quantile) for quantile in quantiles]
        return [float("nan") if value is None else value for value in found]

    def _turn(self, now: int) -> None:
        """Begins the slices that are due, and drops those that are too old."""
        if now - self._began >= _WINDOW_NS + _WINDOW_NS // _SLICES:
            self._slices, self._began = [_sketch()], now
        while now - self._began >= _WINDOW_NS // _SLICES:
            self._slices = [*self._slices[1 - _SLICES :], _sketch()]
            self._began += _WINDOW_NS // _SLICES


def _sketch() -> DDSketch:
    # Imported here because few want summaries, and it takes a while.
    from ddsketch import DDSketch

    return DDSketch(_ACCURACY)


class Latencies:
    """Summaries of a request's whole way and of its parts, in whole microseconds, in the order of ``PARTS``."""

    PARTS = ("request", "queue", "compute_input", "compute_infer", "compute_output")

    __slots__ = ("parts", "quantiles")

    def __init__(self, quantiles: Sequence[float]) -> None:
        self.quantiles = tuple(quantiles)
        self.parts = tuple(Quantiles() for _ in self.PARTS)

    def observe(self, nanoseconds: Tuple[int, ...], now: int) -> None:
        """Takes a request that succeeded."""
        for part, duration in zip(self.parts, nanoseconds):
            part.observe(duration // 1000, now)

    def read(self, index: int, now: int) -> Tuple[int, int, List[float]]:
        """Count, sum and quantiles of one of the parts."""
        part = self.parts[index]
        return part.count, part.sum, part.values(self.quantiles, now)
