"""The down ring, read by whoever waits for something that comes through it.

Handing a record from a thread that reads to a thread that waits costs a switch of the interpreter's lock, several times the rest. So
there is no reading thread: the first thread that waits leads, which means that it reads the ring and passes on what is for others, until
its own has come; then the next one leads. The main thread waits for batches, other threads for the replies to their calls; for
coroutines, which cannot wait here, a thread of its own does.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
from collections import deque
from time import monotonic, perf_counter_ns
from typing import Callable, Deque, Optional

from ..shm.cores import current_core, step_aside
from ..shm.errors import ProtocolError
from ..shm.polling import TAKEN_NS, PollBudget
from ..shm.ring import Consumer
from .error import TritonModelException

_SLEEP_SECONDS = 1.0
"""Longest sleep between two looks at the ring: the doorbell is fenced, this is the belt to its braces."""

_OWN_THREADS = 2
"""The main thread, and the one that reads the control socket. As long as there are no others, polling takes the interpreter from nobody."""

_TURNS = range(16)
"""Of polling, between two looks at where this thread runs."""

_ONE = (1).to_bytes(8, "little")


class Waiter:
    """One thing that somebody waits for. ``done`` once it is there.

    Args:
        poll: how long to poll before sleeping, for waits that are expected to be short.
    """

    __slots__ = ("_asleep", "done", "poll")

    def __init__(self, poll: Optional[PollBudget] = None) -> None:
        self.done = False
        self.poll = poll
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def is_done(self) -> bool:
        """``done``, for those who have just seen it otherwise: another thread may have changed it."""
        return self.done

    def sleep(self, seconds: float) -> None:
        self._asleep.acquire(timeout=seconds)

    def wake(self) -> None:
        try:
            self._asleep.release()
        except RuntimeError:
            return  # was awake


class Inbox:
    """Args:
    route: takes each record; finishes the waiters whose thing has come.
    before_sleep: called before the process goes to sleep.
    shares_core: whether the calling thread runs where the server does.
    """

    def __init__(
        self,
        down: Consumer,
        bell: int,
        route: Callable[[bytes], None],
        before_sleep: Callable[[], None],
        shares_core: Callable[[], bool],
    ) -> None:
        self._down = down
        self._shares_core = shares_core
        self._bell = bell
        self._readable = select.poll()
        self._readable.register(bell, select.POLLIN)
        self._route = route
        self._before_sleep = before_sleep
        self._lead = threading.Lock()
        self._leader: Optional[Waiter] = None
        self._followers: Deque[Waiter] = deque()
        self._coroutines = _WaitForCoroutines(self)
        self._forked = False

    def forked(self) -> None:
        """In a process that was forked from the stub: what comes down the ring is not for it."""
        self._forked = True

    def wait(self, waiter: Waiter, seconds: Optional[float] = None) -> bool:
        """Waits until ``waiter`` is done; False if that takes longer than ``seconds``.

        Raises:
            TritonModelException: this is a process that the model forked.
        """
        if self._forked:
            raise TritonModelException("what was asked before the fork is answered to the process of the instance itself, not to this one")
        deadline = None if seconds is None else monotonic() + seconds
        chosen = False
        while not waiter.done and (deadline is None or monotonic() < deadline):
            if self._lead.acquire(False):
                chosen = False
                self._leader = waiter
                try:
                    self._read_until(waiter, deadline)
                finally:
                    self._leader = None
                    self._lead.release()
                    self._hand_on()
                continue
            self._followers.append(waiter)
            # The leader may have left before it could see this follower.
            if not waiter.is_done() and self._lead.locked():
                waiter.sleep(_SLEEP_SECONDS if deadline is None else max(min(deadline - monotonic(), _SLEEP_SECONDS), 0))
            try:
                self._followers.remove(waiter)
            except ValueError:
                chosen = True
        if chosen and not self._lead.locked():
            # It was woken to lead, but is done, or has no time left: another has to.
            self._hand_on()
        return waiter.is_done()

    def finish(self, waiter: Waiter) -> None:
        """Marks as done what did not come through the ring, or came to another thread, and wakes who waits for it."""
        waiter.done = True
        if waiter is self._leader:
            os.write(self._bell, _ONE)
        else:
            waiter.wake()

    def routed(self, waiter: Waiter) -> None:
        """Marks as done what came through the ring. For ``route``, and so in the thread that reads it."""
        waiter.done = True
        if waiter is not self._leader:
            waiter.wake()

    def look(self) -> None:
        """Takes what is in the ring, unless somebody does already."""
        if self._lead.acquire(False):
            try:
                self._take_all()
            finally:
                self._lead.release()
                self._hand_on()

    def expect(self) -> None:
        """A coroutine waits for something: somebody has to lead, also while every thread is busy."""
        self._coroutines.more()

    def got(self) -> None:
        """What a coroutine waited for has come."""
        self._coroutines.fewer()

    def _hand_on(self) -> None:
        if not self._followers:
            return  # most of the time: to raise an exception would take longer than the look
        try:
            self._followers.popleft().wake()
        except IndexError:
            return

    def _read_until(self, waiter: Waiter, deadline: Optional[float]) -> None:
        while not waiter.done:
            self._take_all(waiter)
            if waiter.done or (deadline is not None and monotonic() >= deadline):
                return
            self._pause(waiter, deadline)

    def _take_all(self, waiter: Optional[Waiter] = None) -> None:
        """Takes every record that is there, or those up to what ``waiter`` waits for: what is behind that is for who leads next."""
        try:
            while waiter is None or not waiter.done:
                record = self._down.pop()
                if record is None:
                    return
                self._route(record)
        except ProtocolError:
            # Whatever thread this is, the model's code must not catch it: nothing the server says can be believed any more.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _pause(self, waiter: Waiter, deadline: Optional[float]) -> None:
        """Returns when there is something in the ring, and sometimes without: polls if that pays, then sleeps until the bell."""
        down = self._down
        budget = waiter.poll
        started = perf_counter_ns()
        if budget is not None and threading.active_count() <= _OWN_THREADS and self._poll(waiter, budget, started):
            budget.waited(perf_counter_ns() - started)
            return
        self._before_sleep()
        if down.lie_down():
            seconds = _SLEEP_SECONDS if deadline is None else max(min(deadline - monotonic(), _SLEEP_SECONDS), 0)
            if not waiter.done:
                self._readable.poll(seconds * 1000)
            down.stay_awake()
            down.silence()
        if budget is not None:
            budget.waited(perf_counter_ns() - started)

    def _poll(self, waiter: Waiter, budget: PollBudget, started: int) -> bool:
        """Looks at the ring for as long as that pays; whether there is something."""
        until = started + budget.nanoseconds(started)
        words, word, sequence = self._down.awaited()
        pause = os.sched_yield
        now = started
        while now < until:
            if self._shares_core():
                step_aside(current_core())
            # No call that is not needed: the others who poll on this core wait for this turn to end.
            for _ in _TURNS:
                if words[word] == sequence or waiter.done:
                    return True
                pause()  # lets whoever shares this core go first, and costs half a microsecond when nobody does
                before, now = now, perf_counter_ns()
                if now - before > TAKEN_NS:
                    budget.disturbed(now)
                    return self._down.ready()
        return False


class _WaitForCoroutines:
    """A thread that leads, when nobody else does, for as long as coroutines wait. Started when the first one does."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._lock = threading.Lock()
        self._count = 0
        self._waiter: Optional[Waiter] = None
        self._needed = threading.Semaphore(0)
        self._started = False

    def more(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._waiter = Waiter()
                self._needed.release()
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="stublet-replies", daemon=True).start()

    def fewer(self) -> None:
        with self._lock:
            self._count -= 1
            waiter = self._waiter if self._count == 0 else None
        if waiter is not None:
            self._inbox.finish(waiter)

    def _run(self) -> None:
        while True:
            self._needed.acquire()
            waiter = self._waiter
            assert waiter is not None
            self._inbox.wait(waiter)
