"""Runs a program for the server, such as an installer: its output goes to the log, and it does not outlive the server."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Deque, Dict, Iterator, Sequence

from .cache import Ended

logger = logging.getLogger(__name__)

_LOOK_MS = 100
_LAST_LINES = 15

# Told to a process that becomes the program, since between fork and exec no Python may run in a server with threads.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# Would let an installer see, or use, what is installed elsewhere.
_ELSEWHERE = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
_PLAIN = {
    "PYTHONUNBUFFERED": "1",
    "NO_COLOR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "UV_NO_PROGRESS": "1",
}


class ProgramFailed(Exception):
    """A program ended with another status than 0; the text is how, and its last lines. ``last`` is the last of them."""

    def __init__(self, command: Sequence[str], status: int, lines: Sequence[str]) -> None:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        told = "\n".join(["; it said last:", *lines]) if lines else ""
        super().__init__(f"'{' '.join(command)}' {how}{told}")
        self.last = lines[-1] if lines else str(self)


class Programs:
    """Runs one program after another, in a working directory.

    Args:
        lock: a descriptor that they inherit.
        ending: ends them.
    """

    def __init__(self, directory: str, lock: int, ending: threading.Event) -> None:
        self._directory = directory
        self._lock = lock
        self._ending = ending

    def run(self, *command: str) -> None:
        """Runs a program to its end; each line of its output is logged.

        Raises:
            ProgramFailed: see there.
            Ended: the server is ending; the program has been killed.
        """
        last: Deque[str] = deque(maxlen=_LAST_LINES)
        wrapped = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        # A session of its own: what the program starts is ended with it.
        with subprocess.Popen(
            wrapped,
            cwd=self._directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[self._lock],
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in self._lines(process.stdout.fileno()):
                    logger.info("%s", line)
                    last.append(line)
                status = self._wait(process)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if status:
            raise ProgramFailed(command, status, list(last))

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit status; it may go on without an output."""
        while True:
            if self._ending.is_set():
                raise Ended
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK_MS / 1000)

    def _lines(self, fd: int) -> Iterator[str]:
        """What the program writes, line by line, until it closes its output."""
        events = select.poll()
        events.register(fd, select.POLLIN)
        unfinished = b""
        while True:
            if self._ending.is_set():
                raise Ended
            if not events.poll(_LOOK_MS):
                continue
            chunk = os.read(fd, 1 << 16)
            *lines, unfinished = (unfinished + (chunk or b"\n")).replace(b"\r", b"\n").split(b"\n")
            yield from (line.decode(errors="replace").rstrip() for line in lines if line.strip())
            if not chunk:
                return


def _environment() -> Dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    return {**kept, **_PLAIN}
