"""The server's log: in the forms that Triton's users and their log parsers know, or as JSON.

Settings are read for each line, so that a change of them is effective at once.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import Any, Callable, Dict, Mapping, Optional, Protocol, TextIO

from .flood import LINE_BYTES, Allowance
from .log_file import LogFile
from .options import LogOptions

VERBOSE = logging.DEBUG
_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "E"}
_NAMES = {logging.DEBUG: "VERBOSE", logging.INFO: "INFO", logging.WARNING: "WARNING", logging.ERROR: "ERROR", logging.CRITICAL: "ERROR"}
LEVELS = {"INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "VERBOSE": VERBOSE}
"""What stubs call them."""

_LIBRARIES_BYTES = 4 << 20
_TRACEBACK_BYTES = 2000

_NEW_LINE = re.compile(r"\r\n|\n|\r")

root = logging.getLogger("stublet")
models = logging.getLogger("stublet.model")


def facts(model: str, version: Optional[int] = None, instance: str = "") -> Dict[str, str]:
    """What a message is about."""
    known = {"model": model, "version": "" if version is None else str(version), "instance": instance}
    return {name: fact for name, fact in known.items() if fact}


def about(known: Mapping[str, str], exception: str = "") -> Dict[str, Any]:
    """``extra`` for a message about that, and the traceback that belongs to it."""
    return {"about": {**known, "exception": exception} if exception else known}


class Formatter(logging.Formatter):
    """One of the forms:

    default   ``I1122 10:38:48.123456 812 repository.py:40] text``
    ISO8601   ``2026-11-22T10:38:48Z I 812 repository.py:40] text``
    json      an object: ``time``, ``level``, ``pid``, ``where``, ``message``, and, where they are known, ``model``, ``version``,
              ``instance``, ``request_id`` and ``exception``

    In the first two a message of several lines goes on in lines that begin with two blanks, so that no text passes for a line of the log.
    """

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        known: Mapping[str, str] = getattr(record, "about", {})
        pid = getattr(record, "stub_pid", self._pid)
        where = getattr(record, "where", None) or f"{record.filename}:{record.lineno}"
        exception = known.get("exception") or (self.formatException(record.exc_info) if record.exc_info else "")
        moment = time.gmtime(record.created)
        microseconds = int(record.created % 1 * 1e6)
        if self._options.format == "json":
            time_text = time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{microseconds:06d}Z"
            fields = {"time": time_text, "level": _NAMES.get(record.levelno, "INFO"), **known, "pid": pid, "where": where}
            fields["message"] = record.getMessage()
            if exception:
                fields["exception"] = fields.pop("exception", exception)
            return json.dumps(fields, ensure_ascii=False)
        letter = _LETTERS.get(record.levelno, "I")
        if self._options.format == "ISO8601":
            head = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment) + f" {letter}"
        else:
            head = letter + time.strftime("%m%d %H:%M:%S", moment) + f".{microseconds:06d}"
        speaker = (known.get("instance") or known["model"]) + " " if hasattr(record, "stub_pid") else ""
        text = record.getMessage() + ("\n" + exception if exception else "")
        return f"{head} {pid} {speaker}{where}] " + _NEW_LINE.sub("\n  ", text.rstrip("\r\n"))


class _LevelSwitch(logging.Filter):
    """``--log-info=false`` and its siblings switch single levels off."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options

    def filter(self, record: logging.LogRecord) -> bool:
        options = self._options
        return {logging.INFO: options.info, logging.WARNING: options.warning, logging.ERROR: options.error}.get(record.levelno, True)


class _Libraries(logging.Filter):
    """What libraries say about each bad request must not fill the disk: of a flood, some is left out, and the next says how much."""

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance(_LIBRARIES_BYTES, time.monotonic())
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == root.name:
            return True
        nbytes = len(record.getMessage()) + (_TRACEBACK_BYTES if record.exc_info else LINE_BYTES)
        if not self._allowance.take(nbytes, time.monotonic()):
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} ({self._left_out} messages of libraries were left out before)", ()
            self._left_out = 0
        return True


def set_up(options: LogOptions) -> None:
    """Sends the log to standard error, or to a file, for the rest of the process.

    Args:
        options: kept; changes of them are effective at once, but for the file and, see ``set_verbose``, the level.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = LogFile(options.file) if options.file else logging.StreamHandler(_utf_8(sys.stderr))
    handler.setFormatter(Formatter(options))
    handler.addFilter(_LevelSwitch(options))
    handler.addFilter(_Libraries())
    root.handlers = [handler]
    root.propagate = False
    set_verbose(options.verbose_level > 0)
    # What libraries have to say, from warnings on, has the same form.
    logging.getLogger().handlers = [handler]


def set_verbose(wanted: bool) -> None:
    """Whether the log takes verbose messages."""
    root.setLevel(VERBOSE if wanted else logging.INFO)


def _utf_8(stream: TextIO) -> TextIO:
    """The stream, told to write what every reader of JSON expects."""
    stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[attr-defined]
    return stream


class Speaker(Protocol):
    """Whose words are logged."""

    @property
    def pid(self) -> Optional[int]: ...

    @property
    def facts(self) -> Mapping[str, str]:
        """See ``facts``."""


def stub_logger(speaker: Speaker) -> Callable[..., None]:
    """A function that logs (level, file, line, text, traceback, request id) under a stub's pid; the last two may be left out, and nothing
    of it is trusted."""

    def log(level: int, file: str, line: int, text: str, exception: str = "", request_id: str = "") -> None:
        if not models.isEnabledFor(level):
            return
        known = {**speaker.facts, "request_id": str(request_id)} if request_id else speaker.facts
        where = f"{file}:{line}" if line else str(file)
        models.log(level, "%s", text, extra={"where": where, "stub_pid": speaker.pid, **about(known, str(exception))})

    return log
