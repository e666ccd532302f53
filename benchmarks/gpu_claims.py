"""What handing over a tensor on a GPU is meant to cost, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .report import Sample

Medians = Mapping[str, Mapping[str, Sample]]
"""By case, such as "bls 4 KiB", and side."""

_FASTER = 20.0
_OF_THE_DEVICE = 0.7
_SMALL_US = 150.0
_FLAT = 2.0
"""So many times what the smallest tensor takes may any other take, without the copy: more is not flat."""


class Claim(NamedTuple):
    """``figure``: what was measured of ``text``."""

    text: str
    figure: float
    holds: bool


def judge(medians: Medians) -> list[Claim]:
    """Those claims of which everything was measured."""
    return list(_claims(medians))


def _claims(medians: Medians) -> Iterator[Claim]:
    handed = _sizes(medians, "bls ")
    if "64 MiB" in handed:
        sides = medians["bls 64 MiB"]
        faster = sides["host"]["p50_us"] / sides["device"]["p50_us"]
        yield Claim(f"at 64 MiB, at least {_FASTER:.0f} times as fast as through host memory", faster, faster >= _FASTER)
    if "stage 1 GiB" in medians:
        sides = medians["stage 1 GiB"]
        share = sides["copy"]["gb_per_s"] / sides["copies"]["gb_per_s"]
        yield Claim(f"the copy of 1 GiB has at least {_OF_THE_DEVICE} of what the device can copy", share, share >= _OF_THE_DEVICE)
    if "4 KiB" in handed:
        took = medians["bls 4 KiB"]["device"]["p50_us"]
        yield Claim(f"4 KiB in less than {_SMALL_US:.0f} microseconds", took, took < _SMALL_US)
    if len(handed) > 1:
        without = [medians[f"bls {size}"]["device"]["p50_us"] - medians[f"stage {size}"]["copy"]["p50_us"] for size in handed]
        most = max(without[1:]) / without[0]
        yield Claim(f"without the copy, no size takes more than {_FLAT:.0f} times what {handed[0]} takes", most, most <= _FLAT)
    beside = _sizes(medians, "queues ")
    if beside:
        ratios = [medians[f"queues {size}"]["device"]["p50_us"] / medians[f"queues {size}"]["torch"]["p50_us"] for size in beside]
        yield Claim("at no size slower than queues of torch.multiprocessing, as a ratio", max(ratios), max(ratios) <= 1)


def _sizes(medians: Medians, kind: str) -> list[str]:
    return [case.removeprefix(kind) for case in medians if case.startswith(kind)]
