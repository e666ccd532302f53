"""What is to be traced, and where to: ``--trace-config`` and its kin (spec 6.10)."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Sequence, Tuple

OFF, TIMESTAMPS, TENSORS = "OFF", "TIMESTAMPS", "TENSORS"
TRITON, OPENTELEMETRY = "triton", "opentelemetry"

_MOST = 2**32 - 1
_KEYS = {
    "": ("mode", "level", "rate", "count"),
    TRITON: ("file", "log-frequency"),
    OPENTELEMETRY: ("url", "resource", "bsp_max_queue_size", "bsp_schedule_delay", "bsp_max_export_batch_size"),
}
_LEAST = {"rate": 0, "count": -1, "log-frequency": 0, "bsp_max_queue_size": 1, "bsp_schedule_delay": 1, "bsp_max_export_batch_size": 1}


@dataclass(slots=True)
class TraceOptions:
    """``mode``: "triton", traces go to a file, or "opentelemetry", to a collector. ``level``: OFF, or TIMESTAMPS, TENSORS or both.
    ``rate``: one of so many requests is traced. ``count``: so many are, then no more; -1 for any number.

    Mode triton: ``file``; ``log_frequency``: so many traces make a file of their own, 0 for one file for all.
    Mode opentelemetry: ``url`` of an OTLP collector; ``resource``: "<key>=<value>" each, what describes this server; ``bsp_...``: the
    batch span processor, with its delay in milliseconds."""

    mode: str = TRITON
    level: Tuple[str, ...] = (OFF,)
    rate: int = 1000
    count: int = -1
    file: str = ""
    log_frequency: int = 0
    url: str = "http://localhost:4318/v1/traces"
    resource: Tuple[str, ...] = ()
    bsp_max_queue_size: int = 2048
    bsp_schedule_delay: int = 5000
    bsp_max_export_batch_size: int = 512

    def read(self, settings: Sequence[str]) -> None:
        """Takes ``--trace-config`` settings, ``<key>=<value>`` or ``<mode>,<key>=<value>`` each. Levels and resources add up.

        Raises:
            ValueError: what is wrong.
        """
        levels: Tuple[str, ...] = ()
        for setting in settings:
            name, equals, value = setting.partition("=")
            mode, _, key = name.rpartition(",")
            if not equals or not key:
                raise ValueError(f"'{setting}' is not of the form <key>=<value>, or <mode>,<key>=<value>")
            if mode not in _KEYS:
                raise ValueError(f"'{setting}': the modes are {TRITON} and {OPENTELEMETRY}")
            if key not in _KEYS[mode]:
                near = get_close_matches(key, _KEYS[mode], 1)
                raise ValueError(f"unknown key '{key}'; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS[mode])}"))
            if key == "level":
                levels += (value,)
            elif key == "resource":
                self.resource += (_resource(value),)
            elif key in _LEAST:
                setattr(self, key.replace("-", "_"), parse_number(key, value, _LEAST[key]))
            elif key == "mode" and value not in (TRITON, OPENTELEMETRY):
                raise ValueError(f"'{setting}': the modes are {TRITON} and {OPENTELEMETRY}")
            else:
                setattr(self, key, value)
        if levels:
            self.level = parse_levels(levels)


def parse_levels(levels: Sequence[str]) -> Tuple[str, ...]:
    """The value of ``level``, without repetitions.

    Raises:
        ValueError: with Triton's text where it has one.
    """
    for level in levels:
        if level not in (OFF, TIMESTAMPS, TENSORS):
            raise ValueError(f"Unable to parse 'trace_level', got: {level}; the levels are {OFF}, {TIMESTAMPS} and {TENSORS}")
    if OFF in levels and len(levels) > 1:
        raise ValueError("Expect only one trace level 'OFF' is specified")
    return tuple(dict.fromkeys(levels)) or (OFF,)


def parse_number(key: str, text: str, least: int) -> int:
    """The value of a setting that is a number from ``least`` on.

    Raises:
        ValueError: with Triton's text.
    """
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"Unable to parse '{key}', got: {text}") from None
    if number < least:
        raise ValueError(f"Unable to parse '{key}'. Expecting value >= {least}, got:{number}")
    if number > _MOST:
        raise ValueError(f"Unable to parse '{key}', value is out of range [ 0, {_MOST} ], got: {text}")
    return number


def _resource(text: str) -> str:
    if not text.partition("=")[0] or "=" not in text:
        raise ValueError(f"resource: '{text}' is not of the form <key>=<value>")
    return text
