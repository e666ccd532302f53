"""Looks at every stub now and then, and ends those that take too long or hang. ``deadlines`` says which."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Dict, List, Optional

from ...shm.control import PING
from ..errors import DeadlineExceeded
from ..lifecycle import State
from ..log import about
from ..request import Request, Settled
from ..statistics import Failure
from .cause import unhealthy
from .deadlines import Limits, Notice, Seen, Verdict, Watch
from .process_state import process_of
from .stacks import stacks_of

if TYPE_CHECKING:
    from ..core import Core
    from ..instance import Instance

LOOK_SECONDS = 1.0
"""At least so often; ``execute_timeout`` may ask for more."""

_LEAST_SECONDS = 0.02
_PING_SECONDS = 5.0
_STACKS_SECONDS = 2.0
_TERM_SECONDS = 1.0
"""So long a process has that handles SIGTERM, as a model may have it."""

logger = logging.getLogger(__name__)


class _Watched:
    """An instance that has a process, and what is known of it. ``pinged``: when it was asked last; ``unanswered``: the same if it has not
    answered."""

    __slots__ = ("examined", "limits", "overdue", "ping_seconds", "pinged", "unanswered", "watch")

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.watch = Watch(limits, now)
        self.ping_seconds = min(limits.hang / 3 or _PING_SECONDS, _PING_SECONDS)
        self.pinged = now
        self.unanswered: Optional[float] = None
        self.examined = now
        self.overdue: List[Request] = []


class Watcher:
    """Of a server's instances. All methods are called in its loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._watched: Dict[Instance, _Watched] = {}
        self._timer: Optional[asyncio.TimerHandle] = None
        self._period = LOOK_SECONDS
        self._skipped = False
        self._stopped = 0.0

    def watch(self, instance: Instance) -> None:
        """From now on, until it has ``ended``. Its process is there."""
        self._watched[instance] = _Watched(instance.limits, self._clock())
        self._plan()

    @property
    def instances(self) -> List[Instance]:
        """Every one that has a process, by model and name."""
        return sorted(self._watched, key=lambda instance: (instance.model.name, instance.model.version, instance.name))

    def ended(self, instance: Instance) -> None:
        """Its process has; the requests that took too long are told so before all others, unless they were."""
        watched = self._watched.pop(instance, None)
        if watched is not None:
            self._fail(instance, watched.overdue, instance.reason)

    def answered(self, instance: Instance) -> None:
        """Its heart beats."""
        watched = self._watched.get(instance)
        if watched is not None:
            watched.unanswered = None

    def _clock(self) -> float:
        """In seconds, without the time for which this process was stopped: its machine may have been suspended, and its stubs with it."""
        return _now() - self._stopped

    def _plan(self) -> None:
        """Sees to the next look, unless there will be one soon enough."""
        if not self._watched:
            return
        self._period = min(watched.limits.period(_LEAST_SECONDS, LOOK_SECONDS) for watched in self._watched.values())
        due = _now() + self._period
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        assert self._timer is not None
        late = _now() - self._timer.when()
        self._timer = None
        if late > LOOK_SECONDS:
            self._stopped += late
        self._skipped = late > self._period and not self._skipped
        try:
            # After a stop of this process, what stubs have said meanwhile is read first.
            for instance, watched in [] if self._skipped else list(self._watched.items()):
                self._look_at(instance, watched)
        finally:
            self._plan()

    def _look_at(self, instance: Instance, watched: _Watched) -> None:
        now = self._clock()
        begun = instance.channel.begun()
        process = None if instance.pid is None else process_of(instance.pid)
        if now - watched.examined >= LOOK_SECONDS:
            watched.examined = now
            instance.process.look_for_oom_kills(_now())
        if instance.state.talks and watched.unanswered is None and now - watched.pinged >= watched.ping_seconds:
            watched.pinged = watched.unanswered = now
            instance.process.tell((PING,))
        loading = instance.state.alive and not instance.state.talks
        calls = [request.key for request in begun if not request.returned]
        for finding in watched.watch.look(Seen(now, loading, calls, bool(begun), process, watched.unanswered)):
            if isinstance(finding, Notice):
                text = "stub '%s' (pid %s): %s"
                logger.warning(text, instance.name, instance.pid, finding.text, extra=about(instance.facts))
            else:
                late = [request for request in begun if request.key in finding.overdue]
                self._core.keep(asyncio.get_running_loop().create_task(self._end(instance, watched, finding, late)))

    async def _end(self, instance: Instance, watched: _Watched, verdict: Verdict, late: List[Request]) -> None:
        instance.process.condemn(verdict.cause)
        if instance.state is State.READY:
            # What comes now waits for the next one.
            instance.model.expect(True)
            instance.model.retire(instance)
        pid = instance.pid
        text = f"{unhealthy(instance.name)}: {verdict.cause.text} (pid {pid}, model '{instance.model.name}')"
        # A client's memory must not be written to any more when the client is told.
        watched.overdue = [request for request in late if request.regions is not None]
        self._fail(instance, [request for request in late if request.regions is None], text)
        stacks = await stacks_of(instance.process, _STACKS_SECONDS)
        logger.error("%s; it is ended, and these are its stacks:\n%s", text, stacks, extra=about(instance.facts))
        instance.process.signal(signal.SIGTERM)
        await asyncio.wait([instance.ended], timeout=_TERM_SECONDS)
        instance.kill()

    def _fail(self, instance: Instance, requests: List[Request], text: str) -> None:
        settled: List[Settled] = []
        with instance.model.lock:
            for request in requests:
                if not request.answered:
                    request.answered = True
                    request.failure = Failure.BACKEND
                    settled.append((request, DeadlineExceeded(text), True))
        if settled:
            instance.model.settle(settled)


def _now() -> float:
    return asyncio.get_running_loop().time()
