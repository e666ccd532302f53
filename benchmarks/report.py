"""From samples to medians, ratios, tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .table import print_table

# A process that runs for this share of the time is what limits the rate.
_SATURATED = 0.9

# One run's figures by name.
Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Column:
    """How one figure of a sample is shown."""

    key: str
    heading: str
    form: str = ".2f"


@dataclass(frozen=True, slots=True)
class Result:
    """All samples of one case: for each server, in the order in which they were taken."""

    case: str
    samples: Mapping[str, Sequence[Sample]]

    def medians(self) -> dict[str, Sample]:
        return {server: {key: statistics.median(s[key] for s in runs) for key in runs[0]} for server, runs in self.samples.items()}

    def ratios(self) -> Sample:
        """First server's median over the second's, for each figure that both have and is not 0."""
        servers = list(self.medians().values())
        if len(servers) < 2:
            return {}
        first, second = servers
        return {key: first[key] / second[key] for key in first if second.get(key)}

    def spread(self, key: str) -> tuple[float, float]:
        """Lowest and highest ratio of one figure within a round: how far to trust the ratio."""
        first, second = self.samples.values()
        rounds = [a[key] / b[key] for a, b in zip(first, second, strict=True)]
        return min(rounds), max(rounds)


def show(title: str, results: Sequence[Result], columns: Sequence[Column], spread: str = "") -> None:
    """Prints medians, a line for each server, and under two servers their ratio.

    `spread` names the figure whose lowest and highest ratio stands in a last column.
    """
    compared = any(len(result.samples) > 1 for result in results)
    present = {key for result in results for runs in result.samples.values() for key in runs[0]}
    columns = [column for column in columns if column.key in present]
    headings = ["case", "server", *(column.heading for column in columns), "note"]
    rows: list[list[str]] = []
    for result in results:
        medians = result.medians()
        for server, sample in medians.items():
            cells = [_cell(sample, column.key, column.form) for column in columns]
            rows.append([result.case, server, *cells, _limit(sample)])
        ratios = result.ratios()
        if ratios:
            cells = [_cell(ratios, column.key, ".2f") for column in columns]
            low, high = result.spread(spread)
            heading = next(column.heading for column in columns if column.key == spread)
            rows.append(["", "ratio", *cells, f"{heading} {low:.2f}-{high:.2f}"])
    if compared:
        title += "; ratio: first over second, and its range over the rounds"
    print_table(title, headings, rows)


def save(path: Path, options: Mapping[str, Any], results: Sequence[Result], **more: Any) -> None:
    """Writes everything that was measured, with what is needed to judge it, as JSON; ``more`` beside it."""
    document = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "options": dict(options),
        "cases": {
            result.case: {
                "medians": result.medians(),
                "ratios": result.ratios(),
                "samples": {server: list(runs) for server, runs in result.samples.items()},
            }
            for result in results
        },
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten: {path}")


def machine() -> dict[str, Any]:
    """The machine and the interpreter, as far as they explain a figure."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": os.getloadavg(),
    }


def _cell(sample: Sample, key: str, form: str) -> str:
    return f"{sample[key]:{form}}" if key in sample else "-"


def _limit(sample: Sample) -> str:
    """What limits the rate, from the cores that each end used; no end does where all wait."""
    cores = {end: sample[f"{end}_cores"] for end in ("parent", "stub", "client") if f"{end}_cores" in sample}
    if not cores:
        return ""
    end, most = max(cores.items(), key=lambda item: item[1])
    if most >= _SATURATED:
        limit = f"{end} saturated"
    elif sum(cores.values()) >= _SATURATED * len(os.sched_getaffinity(0)):
        limit = "all cores busy"
    else:
        limit = "none saturated"
    return f"{limit}: " + " + ".join(f"{used:.2f}" for used in cores.values())
