"""Which instances may execute, where they share resources that are limited (spec 5.3). Pure: it is told what happens, and says who may execute
from now on.

An instance that wants to execute gets all that it needs at once, or waits and holds nothing. Those who wait are served in the order of a
virtual time, in which an execution of an instance with priority p lasts p (start-time fair queuing): of two that always want to execute, one
with priority 2 gets half as many turns as one with priority 1, and one that wanted nothing for a while gets no more turns for that. What is
free is kept for those who come first, and whoever needs nothing of what they wait for need not wait for them: nobody starves, and nothing
lies idle that could be used.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import Callable, Dict, Generic, Hashable, Iterable, List, Mapping, NamedTuple, Optional, Tuple, TypeVar
from typing import Counter as CounterOf

Instance = TypeVar("Instance", bound=Hashable)


class Resource(NamedTuple):
    """``device``: on which it is; None for one that all devices share."""

    name: str
    device: Optional[int]


Needs = Mapping[Resource, int]
"""How much of each resource one execution takes."""


class _Member:
    """An instance. ``running``: how many executions it was granted; ``wanted``: how many more it has asked for. ``turn``: when its next
    execution would begin, in virtual time."""

    __slots__ = ("needs", "priority", "running", "turn", "wanted")

    def __init__(self, needs: Needs, priority: int) -> None:
        self.needs = needs
        self.priority = priority
        self.running = 0
        self.wanted = 0
        self.turn = 0


class RateLimiter(Generic[Instance]):
    """Each event returns the instances that may execute from now on, one execution for each time that they are named.

    Args:
        limit_of: how much there is of a resource; if that is None, as much as the instance needs that needs most of it.
    """

    def __init__(self, limit_of: Callable[[Resource], Optional[int]]) -> None:
        self._limit_of = limit_of
        self._members: Dict[Instance, _Member] = {}
        self._capacity: Dict[Resource, int] = {}
        self._used: CounterOf[Resource] = Counter()
        self._queue: List[Tuple[int, int, Instance]] = []
        self._numbers = itertools.count()
        self._now = 0

    def check(self, many: Iterable[Needs]) -> None:
        """Whether instances with these needs may be admitted.

        Raises:
            ValueError: they could never execute, or a name means two things; in Triton's words.
        """
        shared = {resource.name: resource.device is None for resource in self._capacity}
        for resource, count in [item for needs in many for item in needs.items()]:
            if shared.setdefault(resource.name, resource.device is None) != (resource.device is None):
                raise ValueError(
                    f'Resource "{resource.name}" is present as both global and device-specific resource in the model configuration.'
                )
            limit = self._limit_of(resource)
            if limit is not None and count > limit:
                raise ValueError(
                    f'Resource count for "{resource.name}" is limited to {limit} which will prevent scheduling of one or more model '
                    f"instances, the minimum required count is {count}"
                )

    def admit(self, instance: Instance, needs: Needs, priority: int = 1) -> List[Instance]:
        """An instance is there, whose needs were checked."""
        self._members[instance] = _Member(needs, max(priority, 1))
        self._measure()
        return self._grant()

    def dismiss(self, instance: Instance) -> List[Instance]:
        """An instance is gone, and gives back what it has."""
        member = self._members.pop(instance, None)
        if member is None:
            return []
        self._give_back(member, member.running)
        self._queue = [entry for entry in self._queue if entry[2] != instance]
        heapq.heapify(self._queue)
        self._measure()
        return self._grant()

    def ask(self, instance: Instance) -> List[Instance]:
        """An instance wants to execute."""
        member = self._members.get(instance)
        if member is None:
            return []
        member.wanted += 1
        if member.wanted == 1:
            self._enter(instance, member)
        return self._grant()

    def withdraw(self, instance: Instance) -> List[Instance]:
        """An instance wants one execution less than it asked for and was not granted."""
        member = self._members.get(instance)
        if member is None or not member.wanted:
            return []
        member.wanted -= 1
        if not member.wanted:
            self._queue = [entry for entry in self._queue if entry[2] != instance]
            heapq.heapify(self._queue)
        return self._grant()

    def release(self, instance: Instance, count: int = 1) -> List[Instance]:
        """An instance is done with that many executions."""
        member = self._members.get(instance)
        if member is None:
            return []
        self._give_back(member, min(count, member.running))
        return self._grant()

    def in_the_way(self, instance: Instance) -> List[List[Instance]]:
        """Whom an instance has to wait for before it may execute: of each of these lists, one has to be done, or get its turn, first."""
        member = self._members.get(instance)
        if member is None or member.running:
            return []
        found: List[List[Instance]] = []
        for resource, count in member.needs.items():
            room = self._capacity[resource] - count
            if self._used[resource] > room:
                holders = {one: other.needs[resource] for one, other in self._members.items() if other.running and resource in other.needs}
                found += [list(holders), *([one] for one, needed in holders.items() if needed > room)]
        queue = [entry[2] for entry in self._queue]
        if instance in queue:
            earlier = queue[: queue.index(instance)]
            found += [[one] for one in earlier if not self._members[one].needs.keys().isdisjoint(member.needs)]
        return found

    def used(self) -> Dict[Resource, int]:
        """How much of each resource is taken."""
        return {resource: count for resource, count in self._used.items() if count}

    @property
    def capacity(self) -> Mapping[Resource, int]:
        """How much there is of each resource that any instance needs."""
        return self._capacity

    def _measure(self) -> None:
        most: Dict[Resource, int] = {}
        for member in self._members.values():
            for resource, count in member.needs.items():
                most[resource] = max(most.get(resource, 0), count)
        limits = {resource: self._limit_of(resource) for resource in most}
        self._capacity = {resource: most[resource] if limit is None else limit for resource, limit in limits.items()}

    def _enter(self, instance: Instance, member: _Member) -> None:
        member.turn = max(member.turn, self._now)
        heapq.heappush(self._queue, (member.turn, next(self._numbers), instance))

    def _give_back(self, member: _Member, count: int) -> None:
        member.running -= count
        for resource, needed in member.needs.items():
            self._used[resource] -= needed * count

    def _grant(self) -> List[Instance]:
        granted: List[Instance] = []
        blocked: List[Tuple[int, int, Instance]] = []
        kept: CounterOf[Resource] = Counter()
        while self._queue:
            entry = heapq.heappop(self._queue)
            instance = entry[2]
            member = self._members[instance]
            if all(self._used[one] + kept[one] + count <= self._capacity[one] for one, count in member.needs.items()):
                self._used.update(member.needs)
                self._now = max(self._now, member.turn)
                member.turn += member.priority
                member.running += 1
                member.wanted -= 1
                granted.append(instance)
                if member.wanted:
                    self._enter(instance, member)
            else:
                kept.update(member.needs)
                blocked.append(entry)
        self._queue = blocked  # in order, and so a heap; ``in_the_way`` relies on the order
        return granted
