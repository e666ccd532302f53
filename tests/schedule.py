"""Threads of which one runs at a time, line by line, in an order that a seed decides: so that a race is found, and found again."""

from __future__ import annotations

import random
import sys
import threading
from math import inf
from types import FrameType
from typing import Any, Callable, List, Optional

_LONG = 1e4
"""A wait for so many seconds is one without end."""


class StuckError(AssertionError):
    """Every thread waits, and none for anything that will come."""


class _Actor:
    def __init__(self, name: str) -> None:
        self.name = name
        self.go = threading.Semaphore(0)
        self.ready: Optional[Callable[[], bool]] = None
        self.until = inf
        self.error: Optional[BaseException] = None
        self.thread: Optional[threading.Thread] = None


class Schedule:
    """Args:
    seed: decides the order.
    functions: whose lines are the steps.
    """

    def __init__(self, seed: int, *functions: Callable[..., Any]) -> None:
        self._chance = random.Random(seed)
        # Races differ in whether they want many switches or few.
        self._patience = self._chance.choice((0, 0.5, 0.8, 0.95))
        self._haste = self._chance.choice((0.02, 0.1, 0.3))
        self._last: Optional[_Actor] = None
        self._codes = {function.__code__ for function in functions}
        self._actors: List[_Actor] = []
        self._back = threading.Semaphore(0)
        self._local = threading.local()
        self._over = False
        self.now = 0.0
        """What the clock of these threads says. It goes on when one of them has waited for its time to end."""

    def add(self, name: str, function: Callable[[], Any]) -> None:
        """One more thread."""
        actor = _Actor(name)

        def run() -> None:
            self._local.actor = actor
            actor.go.acquire()
            try:
                if not self._over:
                    sys.settrace(self._trace)
                    function()
            except BaseException as error:
                actor.error = error
            finally:
                sys.settrace(None)
                self._actors.remove(actor)
                self._back.release()

        actor.thread = threading.Thread(target=run, name=name)
        self._actors.append(actor)
        actor.thread.start()

    def wait(self, ready: Callable[[], bool], seconds: float = inf) -> None:
        """In a thread of the schedule: blocks until ``ready`` or, maybe, until so much time has passed."""
        actor: _Actor = self._local.actor
        actor.ready, actor.until = ready, self.now + seconds if seconds < _LONG else inf
        self._step(actor)

    def linger(self) -> None:
        """In a thread of the schedule: lets the others go first, for some time or none."""
        for _ in range(self._chance.choice((0, 0, 1, 5, 20, 60))):
            self._step(self._local.actor)

    def run(self) -> None:
        """Runs them to their end.

        Raises:
            StuckError: they do not come to it.
        """
        everyone = list(self._actors)
        try:
            while self._actors:
                actor = self._next()
                actor.ready, actor.until = None, inf
                actor.go.release()
                self._back.acquire()
        finally:
            self._over = True
            for actor in everyone:
                actor.go.release()
                assert actor.thread is not None
                actor.thread.join()
        for actor in everyone:
            if actor.error is not None:
                raise actor.error

    def _next(self) -> _Actor:
        ready = [actor for actor in self._actors if actor.ready is None or actor.ready()]
        late = [actor for actor in self._actors if actor.until < inf]
        if late and (not ready or self._chance.random() < self._haste):
            actor = min(late, key=lambda actor: actor.until)
            self.now = max(self.now, actor.until)
            return actor
        if not ready:
            raise StuckError("nobody goes on: " + ", ".join(actor.name for actor in self._actors))
        if self._last not in ready or self._chance.random() > self._patience:
            self._last = self._chance.choice(ready)
        return self._last

    def _step(self, actor: _Actor) -> None:
        self._back.release()
        actor.go.acquire()
        if self._over:
            sys.settrace(None)
            raise SystemExit

    def _trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._trace_lines if frame.f_code in self._codes else None

    def _trace_lines(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line" and not self._over:
            self._step(self._local.actor)
        return self._trace_lines
