"""The server's rate limiter (``--rate-limit``): what the command line says of it, and its decisions passed on to the models, in any thread."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Dict, Iterable, List, NamedTuple, Optional, Sequence

from ..placement.instance_groups import InstanceSpec
from .rate_limiter import Needs, RateLimiter, Resource

if TYPE_CHECKING:
    from ..instance import Instance

MODES = ("off", "execution_count")


class ResourceLimit(NamedTuple):
    """``--rate-limit-resource``: ``amount`` of a resource; on one device, or, with None, on each, and of one that all devices share."""

    name: str
    amount: int
    device: Optional[int] = None

    @classmethod
    def parse(cls, text: str) -> ResourceLimit:
        """Reads ``<name>:<count>`` or ``<name>:<count>:<device>``.

        Raises:
            ValueError: that is not its form.
        """
        name, *numbers = text.split(":")
        if not name or not 1 <= len(numbers) <= 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise ValueError(f"'{text}' is not of the form <name>:<count> or <name>:<count>:<device>, with numbers from 0 on")
        return cls(name, *map(int, numbers))


class RateLimits:
    """Shares resources among the instances of all models. May be called in any thread, under the lock of a model or not; whoever may execute
    is told in the server's loop, under no lock."""

    def __init__(self, limits: Sequence[ResourceLimit]) -> None:
        self._limits = limits
        self._limiter: RateLimiter[Instance] = RateLimiter(self._limit_of)
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()

    def check(self, specs: Iterable[InstanceSpec]) -> None:
        """Whether these instances may be admitted together.

        Raises:
            ValueError: in Triton's words.
        """
        with self._lock:
            self._limiter.check([_needs(spec) for spec in specs])

    def admit(self, instance: Instance) -> None:
        """An instance is there; what there is of its resources may grow."""
        with self._lock:
            self._tell(self._limiter.admit(instance, _needs(instance.spec), instance.spec.priority))

    def dismiss(self, instance: Instance) -> None:
        """An instance is gone, and with it what it used."""
        with self._lock:
            self._tell(self._limiter.dismiss(instance))

    def ask(self, instance: Instance) -> bool:
        """Whether an instance may execute now; else its model is told when it may."""
        with self._lock:
            return bool(self._limiter.ask(instance))

    def withdraw(self, instance: Instance) -> None:
        """An instance has nothing to execute after all."""
        with self._lock:
            self._tell(self._limiter.withdraw(instance))

    def release(self, instance: Instance, count: int = 1) -> None:
        """An instance is done with that many executions."""
        with self._lock:
            self._tell(self._limiter.release(instance, count))

    def in_the_way(self, instance: Instance) -> List[List[Instance]]:
        """Whom an instance has to wait for before it may execute: of each of these lists, one has to be done, or get its turn, first."""
        with self._lock:
            return self._limiter.in_the_way(instance)

    def _limit_of(self, resource: Resource) -> Optional[int]:
        named = [limit for limit in self._limits if limit.name.lower() == resource.name.lower()]
        if resource.device is None:
            return named[-1].amount if named else None
        there = [limit for limit in named if limit.device == resource.device] or [limit for limit in named if limit.device is None]
        return there[-1].amount if there else None

    def _tell(self, granted: List[Instance]) -> None:
        if granted:
            self._loop.call_soon_threadsafe(_tell_models, granted)


def _tell_models(granted: List[Instance]) -> None:
    for instance in granted:
        instance.model.granted(instance)


def _needs(spec: InstanceSpec) -> Needs:
    needs: Dict[Resource, int] = {}
    for name, shared, count in spec.resources:
        resource = Resource(name, None if shared else spec.device)
        needs[resource] = max(needs.get(resource, 0), count)
    return {resource: count for resource, count in needs.items() if count}
