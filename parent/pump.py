"""When what is pending for a model's instances is written to their rings, and for how long the rings are looked at."""

from __future__ import annotations

import asyncio
import threading
from time import perf_counter_ns
from typing import TYPE_CHECKING, Callable, List, Optional, Set

from ..shm.errors import ProtocolError
from ..shm.polling import yield_core
from .instance import Instance
from .request import Settled

if TYPE_CHECKING:
    from .traffic import Traffic

_STUCK_SECONDS = 0.002


class Pump:
    """Works under the lock of its model: ``flush``, ``flush_begun`` and ``flush_soon`` are called under it, everything else takes it where
    that is needed.

    ``dirty``: the instances for which something is pending.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._lock = traffic.lock
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lull = traffic.server.lull
        self._due = False
        self._stuck: Set[Instance] = set()
        self.dirty: List[Instance] = []

    @property
    def in_loop(self) -> bool:
        """Whether this is the thread of the server's loop."""
        return threading.get_ident() == self._thread

    # Writing

    def flush(self) -> List[Instance]:
        """Writes what is pending; returns for whom."""
        dirty, self.dirty = self.dirty, []
        for instance in dirty:
            try:
                instance.channel.flush()
            except ProtocolError as error:
                self._loop.call_soon_threadsafe(instance.on_violation, str(error))
            if instance.channel.stuck and instance not in self._stuck:
                self._stuck.add(instance)
                self._loop.call_soon_threadsafe(self._loop.call_later, _STUCK_SECONDS, self._flush_stuck, instance)
        return dirty

    def flush_soon(self) -> List[Settled]:
        """Writes what is pending, in the server's loop at the end of its turn; returns the requests that the scheduler refuses on the way."""
        if not self.in_loop:
            refused = self._traffic.tick()
            self.flush()
            return refused
        if not self._due:
            # Once per turn of the loop: the requests of one turn share a record and a wake-up.
            self._due = True
            self._loop.call_soon(self._turn)
        return []

    def flush_begun(self) -> Optional[Instance]:
        """Writes what is pending, if it is for an instance that has nothing else to do, and returns that, which ``expect_more`` has to be told
        of. Such a one need not wait for what else may come in the same turn of the loop."""
        dirty = self.dirty
        if len(dirty) != 1 or not dirty[0].channel.is_beginning or not self.in_loop:
            return None
        self.flush()
        return dirty[0]

    def _turn(self) -> None:
        traffic = self._traffic
        with self._lock:
            self._due = False
            refused = traffic.tick()
            dirty = self.flush()
        if refused:
            traffic.settle(refused)
        for instance in dirty:
            self.expect_more(instance)

    def _flush_stuck(self, instance: Instance) -> None:
        with self._lock:
            self._stuck.discard(instance)
            if instance.state.talks:
                self.dirty.append(instance)
                self.flush()

    # Looking

    def on_bell(self, instance: Instance) -> None:
        """The stub rang: it wrote while this side slept."""
        instance.channel.silence()
        self._look(instance)

    def _look(self, instance: Instance) -> None:
        """Drains, and relies on the bell again, or, when more has come meanwhile, looks again after the loop's other callbacks."""
        self._traffic.drain(instance)
        if not (instance.broken or instance.pollers or instance.channel.asleep()):
            self._loop.call_soon(self._look, instance)

    def _begin(self, instance: Instance) -> None:
        """From now on the calling thread looks at the instance's ring itself and the stub need not ring."""
        with self._lock:
            instance.pollers += 1
            instance.channel.awake()

    def _end(self, instance: Instance) -> None:
        """Undoes ``_begin``."""
        with self._lock:
            instance.pollers -= 1
            missed = instance.pollers == 0 and not instance.channel.asleep()
        if missed:
            self._loop.call_soon_threadsafe(self._look, instance)

    def poll(self, done: Callable[[], bool]) -> None:
        """Looks at the ring in the calling thread until ``done``, for as long as an answer is expected soon. A hand-over to the loop's thread
        and back would cost two wake-ups of a thread."""
        traffic = self._traffic
        now = perf_counter_ns()
        busy = [i for i in traffic.instances if i.channel.in_flight and i.channel.expects.nanoseconds(now)]
        if len(busy) != 1:
            return
        (instance,) = busy
        deadline = now + instance.channel.expects.nanoseconds(now)
        self._begin(instance)
        try:
            while not done() and perf_counter_ns() < deadline:
                if instance.channel.ready():
                    if traffic.drain(instance):
                        return  # it called another model, and the server's loop has to see to that
                elif not yield_core():  # the stub may be waiting for this very core
                    instance.channel.expects.disturbed(perf_counter_ns())
                    return
        finally:
            self._end(instance)

    def expect_more(self, instance: Instance) -> None:
        """Something was sent: in the loop's own thread, looks for what comes back for a while."""
        if not self.in_loop:
            return
        now = perf_counter_ns()
        self._lull.ends(now)
        budget = instance.channel.expects.nanoseconds(now)
        if budget and not instance.pollers:
            self._lull.looks()
            self._begin(instance)
            self._loop.call_soon(self._poll, instance, now + budget)

    def _poll(self, instance: Instance, deadline: int) -> None:
        """One look at a ring in each turn of the loop, for as long as an answer is expected soon."""
        now = perf_counter_ns()
        channel = instance.channel
        if channel.ready():
            self._traffic.drain(instance)
            deadline = now + channel.expects.nanoseconds(now)
        if channel.in_flight and now <= deadline and not instance.broken:
            if yield_core():  # the stubs that are to answer may be waiting for this very core
                self._loop.call_soon(self._poll, instance, deadline)
                return
            channel.expects.disturbed(perf_counter_ns())
        self._end(instance)
        deadline = self._lull.looked(perf_counter_ns())
        if deadline:
            self._loop.call_soon(self._expect_requests, deadline)

    def _expect_requests(self, deadline: int) -> None:
        """Keeps the loop turning, and so looking at its sockets, for as long as the next request is expected soon."""
        if self._lull.lasts(perf_counter_ns(), deadline):
            if yield_core():  # the client may be waiting for this very core
                self._loop.call_soon(self._expect_requests, deadline)
            else:
                self._lull.budget.disturbed(perf_counter_ns())
