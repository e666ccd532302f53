"""Which request goes to which instance. Pure: requests and instances are whatever the caller names them by.

The default scheduler (spec 5.4) is first come, first served, one request for each call of execute, to the first free instance.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Generic, Hashable, List, Tuple, TypeVar

Instance = TypeVar("Instance", bound=Hashable)
Request = TypeVar("Request")
Dispatches = List[Tuple[Instance, Request]]

LOOKAHEAD = 16
"""How many requests a lone instance is handed at once. They wait in its ring instead of in the queue, so that one wake-up and one
record serve several; no other instance could have taken them meanwhile. With several instances each is handed one."""


class DefaultScheduler(Generic[Instance, Request]):
    """Every method returns the dispatches that follow, in order.

    Args:
        capacity: how many requests an instance executes at a time.
    """

    def __init__(self, capacity: int = 1) -> None:
        self._capacity = capacity
        self.queue: Deque[Request] = deque()
        self._load: Dict[Instance, int] = {}
        self._idle: List[Instance] = []

    def add(self, instance: Instance) -> Dispatches:
        """An instance is ready."""
        self._load[instance] = 0
        self._idle.append(instance)
        return self._dispatch()

    def remove(self, instance: Instance, unstarted: List[Request]) -> Dispatches:
        """An instance is gone; the requests that it had been handed but not started go back to the head of the queue, in order."""
        self._load.pop(instance, None)
        if instance in self._idle:
            self._idle.remove(instance)
        self.queue.extendleft(reversed(unstarted))
        return self._dispatch()

    def retire(self, instance: Instance) -> None:
        """An instance is to get no more requests; those that it has it finishes."""
        self._load.pop(instance, None)
        if instance in self._idle:
            self._idle.remove(instance)

    def enqueue(self, request: Request) -> Dispatches:
        """A request arrives."""
        self.queue.append(request)
        return self._dispatch()

    def withdraw(self, request: Request) -> bool:
        """Takes a request out of the queue; False if it is not in it."""
        if request in self.queue:
            self.queue.remove(request)
            return True
        return False

    def finished(self, instance: Instance, requests: int) -> Dispatches:
        """An instance answered that many requests."""
        if instance not in self._load:
            return []  # it was retired
        load = self._load[instance] = self._load[instance] - requests
        if load < self._capacity and instance not in self._idle:
            # The most recently used instance is taken first: its caches are warm.
            self._idle.append(instance)
        return self._dispatch() if self.queue else []

    def _dispatch(self) -> Dispatches:
        queue, idle, load = self.queue, self._idle, self._load
        dispatches: Dispatches = []
        while queue and idle:
            instance = idle[-1] if self._capacity == 1 else min(reversed(idle), key=load.__getitem__)
            load[instance] += 1
            if load[instance] >= self._capacity:
                idle.remove(instance)
            dispatches.append((instance, queue.popleft()))
        if queue and len(load) == 1:
            (instance,) = load
            while queue and load[instance] < max(LOOKAHEAD, self._capacity):
                load[instance] += 1
                dispatches.append((instance, queue.popleft()))
        return dispatches
