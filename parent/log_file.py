"""The log in a file that may be on a full disk: what cannot be written is counted, and the server goes on."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress


class LogFile(logging.Handler):
    """Appends lines to a file, whole. When that fails, standard error is told once, and the lines are lost until it succeeds again; then
    the file says how many.

    Raises (constructor):
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        super().__init__()  # from now on, the end of the process closes it
        self._lost = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        try:
            self._put(record)
        except OSError as error:
            if not self._lost:
                text = f"the log cannot be written to '{self._path}': {error.strerror}; its lines are lost until it can"
                with suppress(OSError):  # it may be on the same disk
                    print(f"error: {text}", file=sys.stderr, flush=True)
            self._lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """See ``logging.Handler``."""
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self._lost:
            notice = logging.makeLogRecord({**record.__dict__, "msg": f"{self._lost} lines of the log were lost", "args": ()})
            notice.__dict__.update(
                levelno=logging.WARNING, levelname="WARNING", exc_info=None, about={}, filename="log_file.py", where="log"
            )
            line = f"{self.format(notice)}\n{line}"
        data = (("\n" if self._torn else "") + line + "\n").encode("utf-8", "backslashreplace")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        finally:
            if written:
                self._torn = written < len(data)
        self._lost = 0
