"""Which requests go to which instance, and when. Pure: a scheduler is told what happens, and at what time in nanoseconds of any clock, and says
what is to be done. Requests and instances are whatever the caller names them by.

The default scheduler (spec 5.4) is first come, first served, one request for each call of execute, to the first free instance.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, Deque, Dict, Generic, Hashable, List, Optional, Protocol, Sequence, Tuple, TypeVar

Instance = TypeVar("Instance", bound=Hashable)
Request = TypeVar("Request", bound=Hashable)


class Reason(Enum):
    """Why a request is not executed; the texts are Triton's."""

    FULL = "Exceeds maximum queue size"
    EXPIRED = "Request timeout expired"
    NO_START = "must specify the START flag on the first request of the sequence"
    SEQUENCE_EXPIRED = "timeout of the corresponding sequence has been expired"
    CANCELLED = "a request of the same sequence was cancelled"
    LOST = "the instance that had the sequence is gone"


Actions = Tuple[Sequence[Tuple[Any, List[Any]]], Sequence[Tuple[Any, Reason]]]
"""What is to be done: batches to be handed to instances, in order, each to be executed by one call; and requests to be refused."""

NOTHING: Actions = ((), ())


class Scheduler(Protocol):
    """Each event returns the actions that follow from it."""

    @property
    def waiting(self) -> int:
        """How many requests wait."""

    @property
    def due(self) -> Optional[int]:
        """When ``tick`` has to be called, if nothing happens before."""

    def add(self, instance: Any, now: int) -> Actions:
        """An instance is ready."""

    def remove(self, instance: Any, unstarted: Sequence[Any], now: int) -> Actions:
        """An instance is gone; the requests that it had been handed but not started go back to the head of the queue, in order."""

    def retire(self, instance: Any) -> None:
        """An instance is to get no more requests; those that it has it finishes."""

    def enqueue(self, request: Any, now: int) -> Actions:
        """A request arrives."""

    def withdraw(self, request: Any) -> bool:
        """Takes a request out of the queue; False if it is not in it."""

    def deadline(self, request: Any) -> Optional[int]:
        """By when a request that an instance was to be handed, but cannot have yet, has to be begun or be refused; None if it may wait."""

    def finished(self, instance: Any, batches: int, now: int) -> Actions:
        """An instance is done with that many batches."""

    def tick(self, now: int) -> Actions:
        """Time has passed."""

    def drop_all(self) -> List[Any]:
        """Empties the queue."""


LOOKAHEAD = 16
"""How many requests a lone instance is handed at once. They wait in its ring instead of in the queue, so that one wake-up and one
record serve several; no other instance could have taken them meanwhile. With several instances each is handed one."""


class DefaultScheduler(Generic[Instance, Request]):
    """A ``Scheduler``, which see.

    Args:
        capacity: how many requests an instance executes at a time.
        max_queue_size: how many may wait for an instance; 0 for any number.
    """

    due = None

    def __init__(self, capacity: int = 1, max_queue_size: int = 0) -> None:
        self._capacity = capacity
        self._most = max_queue_size
        self.queue: Deque[Request] = deque()
        self._load: Dict[Instance, int] = {}
        self._idle: List[Instance] = []

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def add(self, instance: Instance, now: int) -> Actions:
        self._load[instance] = 0
        self._idle.append(instance)
        return self._dispatch()

    def remove(self, instance: Instance, unstarted: Sequence[Request], now: int) -> Actions:
        self.retire(instance)
        self.queue.extendleft(reversed(unstarted))
        return self._dispatch()

    def retire(self, instance: Instance) -> None:
        self._load.pop(instance, None)
        if instance in self._idle:
            self._idle.remove(instance)

    def enqueue(self, request: Request, now: int) -> Actions:
        if self._idle and self._capacity == 1 and not self.queue:
            # Most requests come this way: it spares them the queue, which would cost them half a microsecond.
            instance = self._idle.pop()
            self._load[instance] = 1
            return ((instance, [request]),), ()
        if self._most and len(self.queue) >= self._most:
            return (), [(request, Reason.FULL)]
        self.queue.append(request)
        return self._dispatch()

    def withdraw(self, request: Request) -> bool:
        if request in self.queue:
            self.queue.remove(request)
            return True
        return False

    def deadline(self, request: Request) -> Optional[int]:
        return None

    def finished(self, instance: Instance, batches: int, now: int) -> Actions:
        if instance not in self._load:
            return NOTHING  # it was retired
        load = self._load[instance] = self._load[instance] - batches
        if load < self._capacity and instance not in self._idle:
            # The most recently used instance is taken first: its caches are warm.
            self._idle.append(instance)
        return self._dispatch() if self.queue else NOTHING

    def tick(self, now: int) -> Actions:
        return NOTHING

    def drop_all(self) -> List[Request]:
        dropped = list(self.queue)
        self.queue.clear()
        return dropped

    def _dispatch(self) -> Actions:
        queue, idle, load = self.queue, self._idle, self._load
        batches: List[Tuple[Instance, List[Request]]] = []
        while queue and idle:
            instance = idle[-1] if self._capacity == 1 else min(reversed(idle), key=load.__getitem__)
            load[instance] += 1
            if load[instance] >= self._capacity:
                idle.remove(instance)
            batches.append((instance, [queue.popleft()]))
        if queue and len(load) == 1:
            (instance,) = load
            while queue and load[instance] < max(LOOKAHEAD, self._capacity):
                load[instance] += 1
                batches.append((instance, [queue.popleft()]))
        return batches, ()
