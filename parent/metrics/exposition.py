"""Prometheus' text format, as Triton writes it: labels in alphabetical order, integers without decimals, names as they are (spec 7, 1.11).

The objects have the attributes of those of ``prometheus_client``, whose own writer appends ``_total`` to counters and writes 4.0.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Protocol, Sequence, Tuple, Union

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Number = Union[int, float]

_FIXED_BELOW = 1e17
"""Integers from this size on are written with an exponent."""

_LAST_LABELS = ("le", "quantile")

_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_VALUE_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Sample(NamedTuple):
    """One line. ``name`` has its suffix, such as ``_bucket``."""

    name: str
    labels: Mapping[str, str]
    value: Number


class Family(NamedTuple):
    """The lines of one name. ``type``: counter, gauge, histogram or summary."""

    name: str
    documentation: str
    type: str
    samples: List[Sample]

    @classmethod
    def of(cls, name: str, documentation: str, kind: str, series: Iterable[Tuple[Mapping[str, str], Number]]) -> Family:
        """A counter or gauge from the labels and the value of each of its series."""
        return cls(name, documentation, kind, [Sample(name, labels, value) for labels, value in series])


class Collector(Protocol):
    """Whoever has metrics."""

    def collect(self) -> Iterable[Family]: ...


def histogram_samples(
    name: str, labels: Mapping[str, str], bounds: Iterable[float], buckets: Sequence[int], total: Number
) -> Iterator[Sample]:
    """The lines of one series of a histogram. ``buckets``: how many values are not above each bound, and, last, how many there are.
    ``total``: their sum."""
    for bound, count in zip([*map(number, bounds), "+Inf"], buckets):
        yield Sample(f"{name}_bucket", {**labels, "le": bound}, count)
    yield Sample(f"{name}_sum", labels, total)
    yield Sample(f"{name}_count", labels, buckets[-1])


def render(collectors: Iterable[Collector]) -> bytes:
    """The text of all metrics, UTF-8. Families without samples are left out."""
    lines: List[str] = []
    for collector in collectors:
        for family in collector.collect():
            if family.samples:
                lines.append(f"# HELP {family.name} {family.documentation.translate(_HELP_ESCAPES)}")
                lines.append(f"# TYPE {family.name} {family.type}")
                lines += [f"{sample.name}{_labels(sample.labels)} {number(sample.value)}" for sample in family.samples]
    return "".join(line + "\n" for line in lines).encode()


def number(value: Number) -> str:
    """A value, or a bound of a bucket, as it is written."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < _FIXED_BELOW:
        return str(int(value))
    text = repr(value)
    return _SPECIAL.get(text, text)


_SPECIAL: Dict[str, str] = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = sorted(labels.items(), key=lambda pair: (pair[0] in _LAST_LABELS, pair[0]))
    return "{" + ",".join(f'{name}="{value.translate(_VALUE_ESCAPES)}"' for name, value in pairs) + "}"
