"""The settings of the log as clients see and change them (spec 6.10)."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping

from . import log
from .errors import InvalidArgument, Unsupported
from .options import LOG_FORMATS, LogOptions

_PREFIX = "log_"


class LogSettings:
    """``as_dict`` shows the settings, ``update`` changes some of them, for this process and its stubs, at once.

    Args:
        on_verbose: told whether verbose messages are wanted, when that may have changed.
    """

    def __init__(self, options: LogOptions, on_verbose: Callable[[bool], None]) -> None:
        self._options = options
        self._on_verbose = on_verbose

    def as_dict(self) -> Dict[str, Any]:
        """``log_file``, ``log_info``, ``log_warning``, ``log_error``, ``log_verbose_level`` and ``log_format``."""
        options = self._options
        return {
            "log_file": options.file,
            "log_info": options.info,
            "log_warning": options.warning,
            "log_error": options.error,
            "log_verbose_level": options.verbose_level,
            "log_format": options.format,
        }

    def update(self, changes: Mapping[str, Any]) -> None:
        """Changes settings, all of them or, if one is wrong, none. Those that are None stay as they are.

        Raises:
            InvalidArgument: a value that cannot be, or no setting of that name.
            Unsupported: the file cannot be changed.
        """
        checked = {key[len(_PREFIX) :]: _CHECKS.get(key, _unknown)(key, value) for key, value in changes.items() if value is not None}
        for name, value in checked.items():
            setattr(self._options, name, value)
        verbose = self._options.verbose_level > 0
        log.set_verbose(verbose)
        self._on_verbose(verbose)


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"Invalid value for '{key}': expected a boolean")
    return value


def _level(key: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise InvalidArgument(f"Invalid value for '{key}': expected an unsigned integer")
    return int(value)


def _format(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"Invalid value for '{key}': expected a string")
    if value not in LOG_FORMATS:
        raise InvalidArgument(f"invalid argument for --log_format, got: {value}")
    return value


def _file(_key: str, _value: Any) -> Any:
    raise Unsupported("log file location can not be updated through network protocol")


def _unknown(key: str, _value: Any) -> Any:
    raise InvalidArgument(f"'{key}' is no log setting; those are {', '.join(_CHECKS)}")


_MOST = 2**32 - 1
"""What a message of gRPC can hold."""

_CHECKS: Dict[str, Callable[[str, Any], Any]] = {
    "log_file": _file,
    "log_info": _boolean,
    "log_warning": _boolean,
    "log_error": _boolean,
    "log_verbose_level": _level,
    "log_format": _format,
}
