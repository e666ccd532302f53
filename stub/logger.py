"""``pb_utils.Logger`` (spec 1.10) and the handler that carries Python's own ``logging`` to the server's log."""

from __future__ import annotations

import logging
import os
import sys
from enum import Enum
from typing import ClassVar

from .host import host


class LogLevel(Enum):
    """Levels of the server's log. The value is what travels."""

    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    VERBOSE = "VERBOSE"


class Logger:
    """Writes to the server's log, with the file and line of the caller.

    Raises (all methods):
        TypeError: the message is not a str, or the level not one of Logger's levels.
    """

    INFO: ClassVar[LogLevel] = LogLevel.INFO
    WARNING: ClassVar[LogLevel] = LogLevel.WARNING
    ERROR: ClassVar[LogLevel] = LogLevel.ERROR
    VERBOSE: ClassVar[LogLevel] = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        _write(message, level)

    @staticmethod
    def log_info(message: str) -> None:
        _write(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        _write(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        _write(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        _write(message, LogLevel.VERBOSE)


def _write(message: str, level: LogLevel) -> None:
    if not isinstance(message, str):
        raise TypeError(f"Logger: message must be str, not {type(message).__name__}")
    if not isinstance(level, LogLevel):
        raise TypeError(f"Logger: level must be one of Logger's levels, not {type(level).__name__}")
    caller = sys._getframe(2)
    host.log(level.value, os.path.basename(caller.f_code.co_filename), caller.f_lineno, message)


class ForwardingHandler(logging.Handler):
    """Hands records of the standard ``logging`` module to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            level = LogLevel.ERROR
        elif record.levelno >= logging.WARNING:
            level = LogLevel.WARNING
        elif record.levelno >= logging.INFO:
            level = LogLevel.INFO
        else:
            level = LogLevel.VERBOSE
        try:
            message = record.getMessage()
            trace = self.format(record)[len(message) :].strip("\n")
            host.log(level.value, record.filename, record.lineno, message, *((trace,) if trace else ()))
        except Exception:
            # As every handler does: a record that cannot be formatted is told on stderr, and the model goes on.
            self.handleError(record)
