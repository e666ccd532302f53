"""Which requests are traced: the settings for all models, and those that a model has of its own (spec 6.10).

Settings travel as text. What a model does not set is as for all; what is set back to None is as for all, or, for all, as it was at the
start.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Union

from ..errors import InvalidArgument, Unsupported
from .options import OFF, OPENTELEMETRY, TENSORS, TIMESTAMPS, TraceOptions, parse_levels, parse_number

Value = Union[str, Sequence[str], None]
"""A setting as a client gives it."""


class Wanted(NamedTuple):
    """What of a request is to be traced. ``log_frequency``: see ``TraceOptions``."""

    timestamps: bool
    tensors: bool
    log_frequency: int = 0


class _Setting:
    """Settings, and how many requests they have been asked about."""

    def __init__(self, options: TraceOptions) -> None:
        self.change(options)

    def change(self, options: TraceOptions) -> None:
        self.options = options
        self._left = options.count
        self._seen = 0

    @property
    def on(self) -> bool:
        return OFF not in self.options.level

    def sample(self, forced: bool) -> Optional[Wanted]:
        options = self.options
        if not self.on or not options.rate:
            return None
        if not forced:
            self._seen += 1
            if self._seen % options.rate or not self._left:
                return None
            self._left -= self._left > 0
        return Wanted(TIMESTAMPS in options.level, TENSORS in options.level, options.log_frequency)


class TraceSettings:
    """All methods may be called in any thread.

    Args:
        options: those that the server was started with.
    """

    def __init__(self, options: TraceOptions) -> None:
        self._default = options
        self._lock = threading.Lock()
        self._all = _Setting(options)
        self._models: Dict[str, _Setting] = {}
        self._own: Dict[str, Dict[str, Any]] = {}
        self.active = self._all.on
        """Whether any request may be traced: all that an untraced one has to look at."""

    def sample(self, model: str, forced: bool = False) -> Optional[Wanted]:
        """What is to be traced of the next request to a model; None for nothing.

        Args:
            forced: whatever rate and count say.
        """
        with self._lock:
            return self._models.get(model, self._all).sample(forced)

    def log_frequency(self, model: str) -> int:
        """How many traces make a file, of those that requests to a model have."""
        return self._models.get(model, self._all).options.log_frequency

    def as_dict(self, model: str = "") -> Dict[str, Any]:
        """The settings of a model, or those for all, as the protocol has them.

        Args:
            model: of a model that is there.
        """
        options = self._models.get(model, self._all).options
        settings: Dict[str, Any] = {
            "trace_level": list(options.level),
            "trace_rate": str(options.rate),
            "trace_count": str(options.count),
            "trace_mode": options.mode,
        }
        if options.mode == OPENTELEMETRY:
            settings |= {"url": options.url, "resource": ",".join(options.resource)}
            settings |= {key: str(getattr(options, key)) for key in _PROCESSOR}
        else:
            settings |= {"trace_file": options.file, "log_frequency": str(options.log_frequency)}
        return settings

    def update(self, changes: Mapping[str, Value], model: str = "") -> None:
        """Changes settings, all of them or, if one is wrong, none. Names that are none of the settings, and those of settings that only
        the command line has, are left alone, as in Triton.

        Raises:
            InvalidArgument: a value that cannot be.
            Unsupported: the file cannot be changed.
        """
        if changes.get("trace_file") is not None:
            raise Unsupported("trace file location can not be updated through network protocol")
        own = {_FIELDS[key]: None if value is None else _parse(key, value) for key, value in changes.items() if key in _FIELDS}
        with self._lock:
            if model:
                kept = {**self._own.get(model, {}), **own}
                self._own[model] = {name: value for name, value in kept.items() if value is not None}
            elif own:
                values = {name: getattr(self._default, name) if value is None else value for name, value in own.items()}
                self._all.change(replace(self._all.options, **values))
            self._derive()
            self.active = self._all.on or any(setting.on for setting in self._models.values())

    def _derive(self) -> None:
        for model, own in list(self._own.items()):
            options = replace(self._all.options, **own)
            setting = self._models.get(model)
            if not own:
                del self._own[model]
                self._models.pop(model, None)
            elif setting is None:
                self._models[model] = _Setting(options)
            elif setting.options != options:
                setting.change(options)


def _parse(key: str, value: Value) -> Any:
    try:
        return _PARSERS[key](key, value)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _levels(_key: str, value: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise ValueError("attempt to access JSON non-array as array")
    return parse_levels([value] if isinstance(value, str) else [_text(one) for one in value])


def _number(least: int) -> Callable[[str, Any], int]:
    return lambda key, value: parse_number(key, _text(value), least)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("attempt to access JSON non-string as string")
    return value


_PROCESSOR = ("bsp_max_queue_size", "bsp_schedule_delay", "bsp_max_export_batch_size")
_FIELDS = {"trace_level": "level", "trace_rate": "rate", "trace_count": "count", "log_frequency": "log_frequency"}
_PARSERS: Dict[str, Callable[[str, Any], Any]] = {
    "trace_level": _levels,
    "trace_rate": _number(0),
    "trace_count": _number(-1),
    "log_frequency": _number(0),
}
