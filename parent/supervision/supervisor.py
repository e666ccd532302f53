"""The instances of a model are replaced when they die: at once, after a while, or by one that is kept in reserve. When, ``restarts`` says."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

from ...shm.errors import OutOfSharedMemory, PeerGone
from ..instance import Instance
from ..instance_change import DRAIN_SECONDS, remove_instances
from ..lifecycle import State
from ..log import about
from ..placement.instance_groups import InstanceSpec
from ..placement.placement import Placement
from .config import Supervision
from .recycling import recycle, report_failure
from .restarts import Phase, Restarts

if TYPE_CHECKING:
    from ..model import Model

logger = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 1.0
"""So long may an instance that did not load take to end by itself."""

_LOAD_SECONDS = 3600.0
"""So long may the replacement of an instance that serves take to load, where ``initialize_timeout`` says nothing."""

_NEXT_SPARE_SECONDS = 0.1
"""Before the next spare is loaded: the one that has just taken a place has requests to answer first."""

RECYCLE_DRAIN_SECONDS = 600.0
"""So long may an instance that has been replaced take to finish what it was asked, streams included."""


class Place:
    """Where there is one instance after the other. ``instance``: the one that is there, or was last. ``successor``: one that is to take its
    place as soon as it has loaded. ``timer``: of the next restart. ``since``: when ``instance`` began to serve. ``reason``: why the last one
    died. ``in_reserve``: what is there does not serve, but takes the place of others."""

    __slots__ = ("in_reserve", "instance", "placement", "reason", "restarts", "since", "spec", "successor", "timer")

    def __init__(self, spec: InstanceSpec, placement: Placement, restarts: Restarts, instance: Optional[Instance], now: float) -> None:
        self.spec = spec
        self.placement = placement
        self.restarts = restarts
        self.instance = instance
        self.successor: Optional[Instance] = None
        self.timer: Optional[asyncio.TimerHandle] = None
        self.since = now
        self.in_reserve = False
        self.reason = ""

    @property
    def kind(self) -> InstanceSpec:
        """What has to be the same of those who can take one another's place."""
        return self.spec._replace(name="")

    @property
    def title(self) -> str:
        """For the log."""
        return f"the spare of '{self.spec.name}'" if self.in_reserve else f"instance '{self.spec.name}'"


class Supervisor:
    """Of one model. Does nothing before it is to ``tend`` an instance. All methods are called in the server's loop, but for
    ``unavailable_text``, which may be called in any thread."""

    def __init__(self, model: Model, supervision: Supervision) -> None:
        self._model = model
        self.supervision = supervision
        self._loop = asyncio.get_running_loop()
        self._places: Dict[Instance, Place] = {}
        self._reserve: List[Place] = []
        self._recycling: Optional[asyncio.Task[None]] = None
        self._closed = False

    @property
    def places(self) -> List[Place]:
        """All of them."""
        return list(self._places.values())

    # What the model says

    def tend(self, instances: Sequence[Instance]) -> None:
        """From now on these are replaced when they die; those that have died are."""
        for instance in instances:
            self._places[instance] = Place(instance.spec, instance.placement, self._restarts(), instance, self._now())
        for instance in instances:
            if instance.ended.done():
                self.ended(instance)
        self._balance_reserve()
        if self.supervision.recycles and self._recycling is None and not self._closed:
            self._recycling = self._loop.create_task(recycle(self))
            self._model.server.keep(self._recycling)

    def release(self, instances: Sequence[Instance]) -> None:
        """These are to go, and need not be replaced."""
        for instance in instances:
            place = self._places.pop(instance, None)
            if place is not None:
                self._stop_waiting(place)
        self._balance_reserve()
        self._tell_hope()

    def close(self) -> None:
        """Nothing is replaced any more. What has been started is for the model to stop."""
        self._closed = True
        if self._recycling is not None:
            self._recycling.cancel()
        for place in [*self._places.values(), *self._reserve]:
            self._stop_waiting(place)
        self._tell_hope()

    def ended(self, instance: Instance) -> None:
        """Its process has. If it should not have: what becomes of its place."""
        place = self._places.get(instance)
        if place is None or self._closed or instance.state is not State.FAILED:
            return
        place.reason = instance.reason
        delay = place.restarts.died(self._now())
        if delay is None:
            instance.give_up()
            logger.error("%s", self._given_up(place), extra=about(instance.facts))
        else:
            instance.await_successor()
            self._plan(place, delay)
        self._tell_hope()

    def restarts_in(self, instance: Instance) -> Optional[float]:
        """In how many seconds another one is started at the place of one that has died; None if that is not known."""
        place = self._places.get(instance)
        if place is None or place.restarts.phase is not Phase.WAITING:
            return None
        return max(place.restarts.due - self._now(), 0.0)

    def unavailable_text(self) -> str:
        """When the model will serve again, or why it will not; "" if nothing is known of that."""
        places = list(self._places.values())
        given_up = ""
        for place in places:
            if place.in_reserve:
                continue
            phase = place.restarts.phase
            if phase is Phase.WAITING:
                seconds = max(place.restarts.due - self._now(), 0.0)
                return f"{place.title} is started again in {seconds:.1f} s ({self._counted(place)}): {place.reason}"
            if phase is Phase.LOADING:
                return f"{place.title} is being started again ({self._counted(place)}): {place.reason}"
            if phase is Phase.GIVEN_UP:
                given_up = given_up or self._given_up(place)
        return given_up

    async def renew(self, place: Place, why: str) -> bool:
        """Has another take the place of an instance that serves, as soon as it has loaded; whether it has.

        Args:
            why: for the log.
        """
        old = place.instance
        assert old is not None
        logger.info("instance '%s' is replaced: %s", old.name, why, extra=about(old.facts))
        successor = self._take_spare(place, 0.0) or self._new(place, in_reserve=True)
        if successor is None:
            report_failure(old, place.reason)
            return False
        place.successor = successor
        if successor not in self._model.instances:
            self._model.instances = [*self._model.instances, successor]
        self._tell_hope()
        await asyncio.wait([successor.loaded], timeout=_LOAD_SECONDS)
        loaded = successor.state is State.SPARE
        if not loaded:
            report_failure(old, successor.reason or f"it did not load within {_LOAD_SECONDS:.0f} s")
        self._succeed(place, successor)
        return loaded

    # Restarts

    def _plan(self, place: Place, delay: float) -> None:
        """Somebody died: who takes the place, and when."""
        if place.successor is not None:
            return  # it is being loaded already
        about_it = about(place.instance.facts if place.instance is not None else {})
        spare = None if place.in_reserve else self._take_spare(place, delay)
        if spare is not None:
            logger.warning("%s: the spare takes its place (%s)", place.title, self._counted(place), extra=about_it)
            place.successor = spare
            self._loop.call_soon(self._succeed, place, spare)
            return
        when = f"in {delay:.1f} s" if delay else "at once"
        logger.warning("%s is started again %s (%s)", place.title, when, self._counted(place), extra=about_it)
        place.timer = self._loop.call_later(delay, self._start, place)

    def _start(self, place: Place) -> None:
        place.timer = None
        place.restarts.begun()
        instance = self._new(place, in_reserve=place.in_reserve)
        if instance is not None:
            self._put(place, instance)
            instance.loaded.add_done_callback(partial(self._loaded, place, instance))
            return
        delay = place.restarts.died(self._now())
        if delay is not None:
            place.timer = self._loop.call_later(delay, self._start, place)
        elif place.instance is not None:
            place.instance.give_up()
        self._tell_hope()

    def _new(self, place: Place, in_reserve: bool) -> Optional[Instance]:
        """An instance that has been started; None if that cannot be done."""
        instance = Instance(self._model, place.spec, place.placement)
        instance.in_reserve = in_reserve
        instance.restarts = 0 if place.in_reserve else place.restarts.count
        try:
            instance.start()
        except (OutOfSharedMemory, OSError, PeerGone) as error:
            place.reason = f"{place.title} could not be started: {error}"
            logger.error("model '%s', %s", self._model.name, place.reason, extra=about(instance.facts))
            return None
        return instance

    def _loaded(self, place: Place, instance: Instance, loaded: asyncio.Future[None]) -> None:
        failure = loaded.exception()
        if self._places.get(instance) is not place or self._closed:
            return
        if failure is None and instance.state in (State.READY, State.SPARE):
            place.restarts.served(self._now())
            place.since = self._now()
            what = "is ready" if instance.in_reserve else "serves again"
            logger.info("%s %s (pid %s)", place.title, what, instance.pid, extra=about(instance.facts))
            if instance.in_reserve:
                self._relieve(place)
        elif not instance.ended.done():
            logger.error("%s did not load: %s", place.title, failure, extra=about(instance.facts))
            place.restarts.failed()
            self._loop.call_later(_LAST_WORDS_SECONDS, instance.kill)
        self._tell_hope()

    def _put(self, place: Place, instance: Instance) -> None:
        """Sets an instance in the place of the one before, which stays with the model until it has ended."""
        model, old = self._model, place.instance
        self._places[instance] = place
        place.instance = instance
        others = [one for one in model.instances if one is not instance]
        if old is None:
            model.instances = [*others, instance]
            return
        self._places.pop(old, None)
        at = others.index(old) if old in others else len(others)
        model.instances = [*others[:at], instance, *others[at + old.ended.done() :]]

    def _succeed(self, place: Place, successor: Instance) -> None:
        """A successor has loaded, or will not: it takes the place, if that is still to be taken."""
        old, place.successor = place.instance, None
        assert old is not None
        wanted = not self._closed and self._places.get(old) is place
        died = place.restarts.phase is Phase.WAITING
        if wanted and successor.state is State.SPARE:
            successor.become(place.spec)
            self._put(place, successor)
            if died:
                place.restarts.begun()
                successor.restarts = place.restarts.count
            else:
                successor.restarts = old.restarts
            place.restarts.served(self._now())
            place.since = self._now()
            successor.serve()
            if not died:
                self._dismiss(old, RECYCLE_DRAIN_SECONDS)
        else:
            self._dismiss(successor)
            if wanted and died:
                place.timer = self._loop.call_later(max(place.restarts.due - self._now(), 0), self._start, place)
        self._tell_hope()

    # The reserve

    def _balance_reserve(self) -> None:
        """Has as many in reserve of each kind as there should be."""
        if self._closed:
            return
        examples: Dict[InstanceSpec, Place] = {}
        for place in self._places.values():
            if not place.in_reserve and not place.spec.passive:
                examples.setdefault(place.kind, place)
        for spare in [spare for spare in self._reserve if spare.kind not in examples]:
            self._reserve.remove(spare)
            self._stop_waiting(spare)
            if spare.instance is not None:
                self._places.pop(spare.instance, None)
                self._dismiss(spare.instance)
        for kind, example in examples.items():
            for _ in range(self.supervision.spares - sum(spare.kind == kind for spare in self._reserve)):
                spare = Place(example.spec, example.placement, self._restarts(), None, self._now())
                spare.in_reserve = True
                self._reserve.append(spare)
                spare.timer = self._loop.call_later(0, self._start, spare)

    def _take_spare(self, place: Place, delay: float) -> Optional[Instance]:
        """One of the reserve that can take the place, and is in the reserve no more; another is loaded after a while."""
        for spare in self._reserve:
            instance = spare.instance
            if instance is not None and instance.state is State.SPARE and spare.kind == place.kind:
                del self._places[instance]
                spare.instance = None
                spare.timer = self._loop.call_later(max(delay, _NEXT_SPARE_SECONDS), self._start, spare)
                return instance
        return None

    def _relieve(self, spare: Place) -> None:
        """A spare has loaded: somebody may have been waiting for a restart meanwhile."""
        for place in list(self._places.values()):
            if place.timer is not None and not place.in_reserve and place.kind == spare.kind and place.restarts.hopeful:
                instance = self._take_spare(place, max(place.restarts.due - self._now(), 0))
                if instance is not None:
                    self._stop_waiting(place)
                    self._succeed(place, instance)
                return

    # The rest

    def _restarts(self) -> Restarts:
        return Restarts(self.supervision.restarts, self._now())

    def _dismiss(self, instance: Instance, seconds: float = DRAIN_SECONDS) -> None:
        """Lets an instance finish what it has, and ends it."""
        self._model.server.keep(self._loop.create_task(remove_instances(self._model, [instance], seconds)))

    @staticmethod
    def _stop_waiting(place: Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None

    def _tell_hope(self) -> None:
        serving = [place for place in self._places.values() if not place.in_reserve and not place.spec.passive]
        self._model.expect(not self._closed and any(place.successor is not None or place.restarts.hopeful for place in serving))

    def _counted(self, place: Place) -> str:
        policy = self.supervision.restarts
        return f"restart {place.restarts.recent} of at most {policy.limit} within {policy.window_seconds:g} s"

    def _given_up(self, place: Place) -> str:
        policy = self.supervision.restarts
        if not policy.limit:
            return f"{place.title} is not started again, as 'restart_limit' says: {place.reason}"
        times = f"{place.restarts.recent + 1} times within {policy.window_seconds:g} s"
        return f"{place.title} has died {times} and is not started again until the model is loaded again: {place.reason}"

    def _now(self) -> float:
        return self._loop.time()
