"""The server's log, in the form that Triton's users and their log parsers know."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Callable, Optional, Protocol

VERBOSE = logging.DEBUG
_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "E"}
LEVELS = {"INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "VERBOSE": VERBOSE}
"""What stubs call them."""

root = logging.getLogger("stublet")
models = logging.getLogger("stublet.model")


class Formatter(logging.Formatter):
    """``I1122 10:38:48.123456 812 repository.py:40] text``; with ``iso8601``, ``2026-11-22T10:38:48Z I 812 repository.py:40] text``."""

    def __init__(self, iso8601: bool = False) -> None:
        super().__init__()
        self._iso8601 = iso8601
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        letter = _LETTERS.get(record.levelno, "I")
        where = getattr(record, "where", None) or f"{record.filename}:{record.lineno}"
        moment = time.gmtime(record.created)
        if self._iso8601:
            head = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment) + f" {letter}"
        else:
            head = letter + time.strftime("%m%d %H:%M:%S", moment) + f".{int(record.created % 1 * 1e6):06d}"
        text = f"{head} {getattr(record, 'stub_pid', self._pid)} {where}] {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _LevelSwitch(logging.Filter):
    """``--log-info=false`` and its siblings switch single levels off."""

    def __init__(self, off: set[int]) -> None:
        super().__init__()
        self._off = off

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno not in self._off


def set_up(
    *, verbose: int = 0, info: bool = True, warning: bool = True, error: bool = True, iso8601: bool = False, file: Optional[str] = None
) -> None:
    """Sends the log to standard error, or to ``file``.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(iso8601))
    switches = ((logging.INFO, info), (logging.WARNING, warning), (logging.ERROR, error))
    handler.addFilter(_LevelSwitch({level for level, on in switches if not on}))
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose > 0 else logging.INFO)
    root.propagate = False
    # What libraries have to say, from warnings on, has the same form.
    logging.getLogger().handlers = [handler]


class Speaker(Protocol):
    """Whose words are logged."""

    name: str

    @property
    def pid(self) -> Optional[int]: ...


def stub_logger(speaker: Speaker) -> Callable[[int, str, int, str], None]:
    """A function that logs (level, file, line, text) under an instance's name and pid."""

    def log(level: int, file: str, line: int, text: str) -> None:
        where = f"{speaker.name} {file}:{line}" if line else f"{speaker.name} {file}"
        models.log(level, "%s", text, extra={"where": where, "stub_pid": speaker.pid})

    return log
