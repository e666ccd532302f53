"""A bound on what goes from one source into the log, so that no model fills the disk, or keeps the server busy with what it says."""

from __future__ import annotations

import asyncio
import logging
from typing import Callable, Optional

PRINTED_BYTES = 8 << 20
LOGGED_BYTES = 64 << 20
"""At once, of what is printed to one pipe, and of what is meant for the log."""
BYTES_PER_SECOND = 256 << 10
"""In the long run."""
LINE_BYTES = 150
"""What a line counts beyond its own length: its head in the log, and the work."""

_PAUSE_SECONDS = 1.0


class Allowance:
    """A token bucket: ``burst`` bytes at once, and ``BYTES_PER_SECOND`` in the long run. ``now`` is in seconds, of any clock."""

    def __init__(self, burst: int, now: float) -> None:
        self._burst = burst
        self._left = float(burst)
        self._then = now

    def take(self, nbytes: int, now: float) -> bool:
        """Whether so much may still be; if so, it is taken."""
        self._left = min(self._left + (now - self._then) * BYTES_PER_SECOND, self._burst)
        self._then = now
        if self._left < nbytes:
            return False
        self._left -= nbytes
        return True


class FloodGate:
    """Once a source has said too much, all that it says is left out for a second; then a line says how much that was.

    Args:
        burst: most bytes at once.
        say: logs a line of that source.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, burst: int, say: Callable[[str], None]) -> None:
        self._loop = loop
        self._say = say
        self._allowance = Allowance(burst, loop.time())
        self._lines = 0
        self._nbytes = 0
        self._timer: Optional[asyncio.TimerHandle] = None

    @property
    def shut(self) -> bool:
        """Whether lines are being left out."""
        return self._timer is not None

    def admits(self, nbytes: int) -> bool:
        """Whether a line of so many bytes is to be logged; if not, it has been counted."""
        if self._timer is None:
            if self._allowance.take(nbytes + LINE_BYTES, self._loop.time()):
                return True
            self._timer = self._loop.call_later(_PAUSE_SECONDS, self.open)
        self.leave_out(1, nbytes)
        return False

    def leave_out(self, lines: int, nbytes: int) -> None:
        """While it is shut: counts what is not logged."""
        self._lines += lines
        self._nbytes += nbytes

    def open(self) -> None:
        """Opens it now, if it is shut, and says what was left out; also to be called at the end of the source."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        lines, nbytes = self._lines, self._nbytes
        self._lines = self._nbytes = 0
        self._say(f"{lines} lines of {nbytes} bytes were left out of the log: more than {BYTES_PER_SECOND >> 10} KiB per second")


class BoundedLog:
    """A log of one source, but for floods. Takes what ``log`` does; ``close`` it at the end of the source."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Callable[..., None]) -> None:
        self._log = log
        self._gate = FloodGate(loop, LOGGED_BYTES, lambda text: log(logging.WARNING, "log", 0, text))

    def __call__(self, level: int, file: str, line: int, text: str, exception: str = "", request_id: str = "") -> None:
        if self._gate.admits(len(text) + len(exception)):
            self._log(level, file, line, text, exception, request_id)

    def close(self) -> None:
        self._gate.open()
