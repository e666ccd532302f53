"""Why a stub ended: the taxonomy, and what is said of it to clients and in the log."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from enum import Enum
from typing import List, NamedTuple, Optional, Sequence

CLIENT_LINES, CLIENT_CHARACTERS = 10, 2048
"""How much of what a stub printed last a client is told."""

_OUT_OF_MEMORY = re.compile(r"\bstd::bad_alloc\b|Fatal Python error: .*[Mm]emory|\bcannot allocate memory\b", re.IGNORECASE)
"""What programs say that end themselves for want of memory."""

_TRACEBACK = re.compile(r"\s*(\+ )?(Exception Group )?Traceback \(most recent call last\):")
_BETWEEN_TRACEBACKS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_FRAME = re.compile(r'\s*(\||File ".*", line \d+)')
_PATH = re.compile(r"(?<![\w/:.])~?(?:/[\w.@+~-]+)+/([\w.@+~-]+)/?")


class Kind(Enum):
    """``EXITED``: with an exit code. ``SIGNALLED``: by a signal. ``OUT_OF_MEMORY``: by the kernel or by itself, for want of memory. The
    others are for what the server ended it: ``HUNG``, ``TIMED_OUT``, ``PROTOCOL_ERROR``, ``NO_MEMORY`` for the server's part of it.
    ``UNKNOWN``: nobody could wait for it."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    OUT_OF_MEMORY = "out of memory"
    HUNG = "hung"
    TIMED_OUT = "timed out"
    PROTOCOL_ERROR = "protocol error"
    NO_MEMORY = "no memory"
    UNKNOWN = "unknown"


class Cause(NamedTuple):
    """``text`` goes on after "it"."""

    kind: Kind
    text: str


def cause_of(status: Optional[int], verdict: Optional[Cause] = None, oom: Optional[str] = None, stderr: Sequence[str] = ()) -> Cause:
    """Why it ended.

    Args:
        status: its exit code or, negative, the signal; None when nobody could wait for it.
        verdict: for what the server ended it, if it did; nothing that the process did while it was ended counts then.
        oom: what is known of the kernel's ending it for want of memory, None if it did not.
        stderr: the lines that it printed last.
    """
    if verdict is not None:
        return verdict
    if status is None:
        return Cause(Kind.UNKNOWN, "it ended with an unknown status")
    how = _describe(status)
    if status == -signal.SIGKILL and oom is not None:
        return Cause(Kind.OUT_OF_MEMORY, f"it ran out of memory: the kernel ended it ({how}{oom and '; ' + oom})")
    if status == -signal.SIGABRT and any(map(_OUT_OF_MEMORY.search, stderr)):
        return Cause(Kind.OUT_OF_MEMORY, f"it ran out of memory: it ended itself ({how})")
    return Cause(Kind.EXITED if status >= 0 else Kind.SIGNALLED, f"it ended with {how}")


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


class Death(NamedTuple):
    """The end of a stub. ``stderr``: the lines that it printed last; ``stack``: what faulthandler wrote of a native crash, or ""."""

    pid: Optional[int]
    cause: Cause
    stderr: List[str]
    stack: str

    def summary(self, name: str, doing: str, model: str) -> str:
        """One line: who, why, while doing what."""
        return f"{unhealthy(name)}: {self.cause.text} while {doing} (pid {self.pid}, model '{model}')"

    def for_log(self, summary: str) -> str:
        """All of it, but for the stack."""
        return _with_lines(summary, self.stderr)

    def for_client(self, summary: str, expose: bool) -> str:
        """The line, and the last that the stub printed.

        Args:
            expose: whether tracebacks, stacks and paths are for clients, too.
        """
        if expose:
            return _with_lines(summary, self.stderr) + (f"\n{self.stack}" if self.stack else "")
        return _with_lines(summary, bounded(without_tracebacks(self.stderr), CLIENT_LINES, CLIENT_CHARACTERS))


def unhealthy(name: str) -> str:
    """The beginning of every such text, which Triton's users know."""
    return f"Stub process '{name}' is not healthy"


def _with_lines(summary: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{summary}; last lines of its stderr:", *lines]) if lines else summary


def bounded(lines: Sequence[str], most: int, characters: int) -> List[str]:
    """The last of the lines, so many at most, and so many characters in all."""
    kept: List[str] = []
    for line in reversed(lines[-most:]):
        characters -= len(line) + 1
        if characters < 0:
            break
        kept.append(line)
    return kept[::-1]


def without_tracebacks(lines: Sequence[str]) -> List[str]:
    """What a client may read of them: no frames of tracebacks, of which the exceptions remain, and of paths the names of files alone."""
    kept: List[str] = []
    inside = False
    for line in lines:
        if _TRACEBACK.match(line):
            inside = True
        elif inside and (not line.strip() or line[0] in " \t"):
            continue
        else:
            inside = False
            if line.strip() and line not in _BETWEEN_TRACEBACKS and not _FRAME.match(line):
                kept.append(_PATH.sub(r"\1", line))
    return kept
