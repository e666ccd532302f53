"""How instances join the traffic of a model and leave it, and what becomes of requests while there are none."""

from __future__ import annotations

from time import perf_counter_ns
from typing import List

from .errors import Unavailable
from .instance import Instance
from .request import Request, Settled
from .statistics import Failure
from .traffic import Traffic, serves


class Roster(Traffic):
    """The traffic of a model whose instances come and go."""

    def hand_directly(self, instance: Instance, requests: List[Request]) -> bool:
        """Has an instance execute requests together that are for no other; False if they are more than it can have at once."""
        with self.lock:
            for request in requests:
                request.instance = instance
            if not instance.channel.hand(requests):
                for request in requests:
                    request.release()
                return False
            self.pump.dirty.append(instance)
            self.pump.flush()
        self.pump.expect_more(instance)
        return True

    def instance_ready(self, instance: Instance) -> None:
        if instance.spec.passive:
            return
        with self.lock:
            self._live = sum(map(serves, self.instances))
            instance.channel.times.free_ns = perf_counter_ns()
            refused = self._hand_over(self._scheduler.add(instance, perf_counter_ns())) + self.tick()
            self.pump.flush()
        self.settle(refused)

    def has_work(self, instance: Instance) -> bool:
        """Whether an instance has sequences that have not ended, or requests that it has not answered."""
        if instance.ended.done() or not instance.state.talks:
            return False
        with self.lock:
            bound = self._sequences is not None and self._sequences.scheduler.is_bound(instance)
            return bound or bool(instance.channel.in_flight)

    def retire(self, instance: Instance) -> None:
        """From now on the instance is handed nothing; what it was handed it finishes."""
        with self.lock:
            instance.retire()
            self._live = sum(map(serves, self.instances))
            self._scheduler.retire(instance)

    def expect(self, soon: bool) -> None:
        """Whether, when no instance is live, requests are to wait for one; if not, those that wait are refused."""
        with self.lock:
            self._expected = soon
            refused = self._drop_all()
        self.settle(refused)

    def _drop_all(self) -> List[Settled]:
        """Refuses what waits, if there is nothing to wait for."""
        if self._live or self._expected or not self._scheduler.waiting:
            return []
        error = Unavailable(self.unavailable_text())
        refused: List[Settled] = []
        for request in self._scheduler.drop_all():
            request.release()
            request.answered = True
            request.failure = Failure.BACKEND
            refused.append((request, error, True))
        return refused

    def instance_gone(self, instance: Instance) -> None:
        """Its process ended: what it was executing fails, what it had not started goes to another instance, if there is one."""
        if not instance.broken:
            self.drain(instance)
        with self.lock:
            # Whatever else is in its rings is not believed any more.
            instance.broken = True
            self._live = sum(map(serves, self.instances))
            lost = instance.reason or "the model is being unloaded"
            settled, unstarted = instance.channel.abandon(Unavailable(lost), self._retries, not instance.violated)
            for request in unstarted:
                request.instance = None
            if self._held is not None:
                unstarted += self._held.abandon(instance)
            settled += self._hand_over(self._scheduler.remove(instance, unstarted, perf_counter_ns()), lost=lost) + self.tick()
            self.pump.flush()
            settled += self._drop_all()
        self.settle(settled)
