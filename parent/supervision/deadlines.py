"""When a stub is ended because it takes too long, or does nothing at all: a pure state machine, which is shown now and then what can be
seen of the stub.

Three things may be told apart from outside. A stub that executes may be silent for as long as native code holds its interpreter, and only
``execute_timeout`` has a say in that. One that is stopped (SIGSTOP), or that waits in the kernel for what does not come, runs nothing at
all, which its state in /proc says. And one that executes nothing has to answer the server's heartbeat; while requests are open that its model
answers in the background, it has to run at least.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from .cause import Cause, Kind

NOTICE_SECONDS = 2.0
"""So long a stub is stopped before the log says so."""

_STOPPED, _TRACED, _IN_KERNEL = "T", "t", "D"


class Limits(NamedTuple):
    """All in seconds, 0 for none. ``execute``: of one call of ``execute``. ``initialize``: from the start of the process until
    ``initialize`` has returned. ``hang``: so long a stub may be stopped, or be silent while it has nothing to execute."""

    execute: float = 0.0
    initialize: float = 0.0
    hang: float = 30.0

    def period(self, least: float, most: float) -> float:
        """How often to look, so that none is exceeded by more than a tenth."""
        tenths = [limit / 10 for limit in self if limit > 0]
        return max(min([most, *tenths]), least)


class Process(NamedTuple):
    """``state``: the letter that proc(5) has for it. ``progress``: a number that is another whenever it has run."""

    state: str
    progress: int


class Seen(NamedTuple):
    """What can be seen of a stub. ``loading``: it has not loaded yet. ``calls``: the executions that are in progress, by a number that no
    two of them share. ``busy``: something that it was handed is not over, in the background perhaps. ``process``: None when nothing is known
    of it. ``unanswered``: when the heartbeat was sent that it has not answered; None if it has answered every one."""

    now: float
    loading: bool
    calls: Sequence[int]
    busy: bool
    process: Optional[Process]
    unanswered: Optional[float]


class Notice(NamedTuple):
    """Something for the log."""

    text: str


class Verdict(NamedTuple):
    """The stub is to be ended. ``overdue``: the executions that took too long."""

    cause: Cause
    overdue: Tuple[int, ...] = ()


Finding = Union[Notice, Verdict]


class Watch:
    """Of one stub. ``started``: when its process was. What is first seen at a ``look`` is taken to have begun then, so nothing is ended
    too early."""

    def __init__(self, limits: Limits, started: float) -> None:
        self._limits = limits
        self._started = started
        self._begun: Dict[int, float] = {}
        self._still: Optional[float] = None
        self._last: Optional[Process] = None
        self._idle: Optional[float] = None
        self._noticed = False
        self._over = False

    def look(self, seen: Seen) -> List[Finding]:
        """What follows. After a verdict, nothing does."""
        if self._over:
            return []
        runs = seen.process is None or self._last is None or seen.process.progress != self._last.progress
        findings = self._look_at_process(seen)
        verdict = self._too_slow(seen) or self._hung(seen, runs)
        if verdict is not None:
            self._over = True
            findings.append(verdict)
        return findings

    def _look_at_process(self, seen: Seen) -> List[Finding]:
        process, last = seen.process, self._last
        self._last = process
        stands = process is not None and (
            process.state == _STOPPED or (process.state == _IN_KERNEL and last is not None and process == last)
        )
        if not stands:
            was_noticed, self._noticed, self._still = self._noticed, False, None
            return [Notice("it goes on")] if was_noticed else []
        self._still = seen.now if self._still is None else self._still
        if seen.now - self._still < NOTICE_SECONDS or self._noticed:
            return []
        self._noticed = True
        assert process is not None
        limit = self._limits.hang
        end = f"it is ended if that lasts {_seconds(limit)}" if limit else "it is left so, because its 'hang_timeout' is 0"
        return [Notice(f"it {_standing(process)}; {end}")]

    def _too_slow(self, seen: Seen) -> Optional[Verdict]:
        limits, now = self._limits, seen.now
        if seen.loading and limits.initialize and now - self._started >= limits.initialize:
            return Verdict(Cause(Kind.TIMED_OUT, f"initialize took longer than its 'initialize_timeout' of {_seconds(limits.initialize)}"))
        if limits.execute:
            begun = self._begun
            self._begun = {call: begun.get(call, now) for call in seen.calls}
            overdue = tuple(call for call, since in self._begun.items() if now - since >= limits.execute)
            if overdue:
                return Verdict(
                    Cause(Kind.TIMED_OUT, f"execute took longer than its 'execute_timeout' of {_seconds(limits.execute)}"), overdue
                )
        return None

    def _hung(self, seen: Seen, runs: bool) -> Optional[Verdict]:
        limit, process = self._limits.hang, seen.process
        is_traced = process is not None and process.state == _TRACED
        # In the background something may compute for long without a word; but then it runs.
        occupied = bool(seen.calls) or (seen.busy and runs)
        if occupied or seen.loading or is_traced or seen.unanswered is None:
            self._idle = None
        elif self._idle is None:
            self._idle = seen.now
        if not limit:
            return None
        if self._still is not None and seen.now - self._still >= limit:
            assert process is not None
            return Verdict(Cause(Kind.HUNG, f"it was hung: it {_standing(process, 'was')} for {_seconds(limit)}"))
        if self._idle is not None and seen.unanswered is not None and seen.now - max(self._idle, seen.unanswered) >= limit:
            text = f"it was hung: it executed nothing and did not answer for {_seconds(limit)}"
            return Verdict(Cause(Kind.HUNG, f"{text}; something in it holds the interpreter"))
        return None


def _standing(process: Process, was: str = "is") -> str:
    if process.state == _STOPPED:
        return f"{was} stopped (SIGSTOP)"
    return f"{'waited' if was == 'was' else 'waits'} in the kernel for what does not come (state D)"


def _seconds(seconds: float) -> str:
    return f"{seconds:g} s"
