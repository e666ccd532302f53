"""What a model's configuration says of how its instances are supervised: its ``parameters`` of these names."""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple, TypeVar

from ..byte_size import parse_size
from .deadlines import Limits
from .restarts import RestartPolicy

_MOST = 1_000_000_000
_MOST_SPARES = 64

Value = TypeVar("Value")


class Supervision(NamedTuple):
    """``restarts``: how often an instance that has died is started again. ``retry_on_crash``: whether requests that it was executing are
    executed once more. ``max_requests``, ``max_rss`` (bytes), ``max_age`` (seconds): an instance that has reached one of them is replaced;
    0 for none. ``spares``: how many are kept in reserve for each kind of instance.
    ``limits``: how long an instance may take, and hang."""

    restarts: RestartPolicy = RestartPolicy()
    retry_on_crash: bool = False
    max_requests: int = 0
    max_rss: int = 0
    max_age: float = 0.0
    spares: int = 0
    limits: Limits = Limits()

    @property
    def recycles(self) -> bool:
        """Whether instances grow old at all."""
        return bool(self.max_requests or self.max_rss or self.max_age)


def supervision_of(config: Any) -> Supervision:
    """What a configuration says.

    Raises:
        ValueError: a parameter is not what it must be.
    """
    policy = RestartPolicy(
        _read(config, "restart_limit", RestartPolicy().limit, _count, f"a number from 0 to {_MOST}"),
        _read(config, "restart_window_seconds", RestartPolicy().window_seconds, _seconds, "a number of seconds above 0"),
    )
    retries = _read(config, "retry_on_crash", False, {"yes": True, "no": False}.__getitem__, '"yes" or "no"')
    if retries and config.WhichOneof("scheduling_choice") == "sequence_batching":
        raise ValueError(
            f"parameter 'retry_on_crash' of model '{config.name}' cannot be \"yes\" with 'sequence_batching': what an instance knew of its "
            "sequences is lost with it"
        )
    return Supervision(
        policy,
        retries,
        _read(config, "max_requests", 0, _count, f"a number from 0 to {_MOST}"),
        _read(config, "max_rss", 0, parse_size, 'a number of bytes, or one with a unit, as in "512MiB" or "2GiB"'),
        _read(config, "max_age", 0.0, _seconds, "a number of seconds above 0"),
        _read(config, "spares", 0, _spares, f"a number from 0 to {_MOST_SPARES}"),
        Limits(
            _read(config, "execute_timeout", 0.0, _seconds, "a number of seconds above 0"),
            _read(config, "initialize_timeout", 0.0, _seconds, "a number of seconds above 0"),
            _read(config, "hang_timeout", Limits().hang, _seconds_or_none, "a number of seconds, or 0 for none"),
        ),
    )


def check_supervision(config: Any, name: str) -> None:
    """Checks the parameters.

    Raises:
        ValueError: as ``supervision_of``; or an ensemble, which has no instances, has one of them.
    """
    if config.WhichOneof("scheduling_choice") == "ensemble_scheduling":
        return
    supervision_of(config)


def _read(config: Any, key: str, default: Value, convert: Callable[[str], Value], wanted: str) -> Value:
    if key not in config.parameters:
        return default
    text: str = config.parameters[key].string_value
    try:
        return convert(text)
    except (ValueError, KeyError):
        raise ValueError(f"parameter '{key}' of model '{config.name}' must be {wanted}, not '{text}'") from None


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > _MOST:
        raise ValueError(text)
    return int(text)


def _spares(text: str) -> int:
    count = _count(text)
    if count > _MOST_SPARES:
        raise ValueError(text)
    return count


def _seconds_or_none(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) <= 0:
        raise ValueError(text)
    return float(text)
