"""Batches of one model that its scheduler has handed to an instance, and that wait until the rate limiter lets it execute them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Callable, Deque, Dict, List, Optional, Tuple

from .rate_limits import RateLimits

if TYPE_CHECKING:
    from ..instance import Instance
    from ..request import Request


class HeldBatches:
    """All methods are called under the model's lock.

    Args:
        deadline_of: by when a request has to be begun, in nanoseconds of any clock; None if it may wait.
    """

    def __init__(self, limits: RateLimits, deadline_of: Callable[[Request], Optional[int]]) -> None:
        self._limits = limits
        self._deadline_of = deadline_of
        self._held: Dict[Instance, Deque[List[Request]]] = {}
        self._deadlines: Dict[Request, int] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(batch) for queue in self._held.values() for batch in queue)

    def next_after(self, instance: Instance, batch: List[Request]) -> Optional[List[Request]]:
        """Holds a batch, and asks for it. If the instance may execute, what it is to execute: batches keep their order."""
        self._held.setdefault(instance, deque()).append(batch)
        first = self.granted(instance) if self._limits.ask(instance) else None
        if first is not batch:
            deadlines = ((request, self._deadline_of(request)) for request in batch)
            self._deadlines.update((request, deadline) for request, deadline in deadlines if deadline is not None)
        return first

    def granted(self, instance: Instance) -> Optional[List[Request]]:
        """The instance may execute: what it is to execute, or None if nothing is left of what it asked for."""
        queue = self._held.get(instance)
        if not queue:
            self._limits.release(instance)
            return None
        return self._forget(queue.popleft())

    @property
    def due(self) -> Optional[int]:
        """When the next of them has waited for too long."""
        return min(self._deadlines.values(), default=None)

    def expired(self, now: int) -> List[Request]:
        """Those that have waited for too long, and are still to be withdrawn."""
        return [request for request, deadline in self._deadlines.items() if deadline <= now]

    def returned(self, instance: Instance, count: int) -> None:
        """The instance is done with that many batches."""
        self._limits.release(instance, count)

    def withdraw(self, request: Request) -> Optional[Tuple[Instance, bool]]:
        """Takes a request out of its batch: the instance that has it, and whether nothing is left of it; None if it is not here."""
        self._deadlines.pop(request, None)
        for instance, queue in self._held.items():
            for batch in queue:
                if request in batch:
                    batch.remove(request)
                    if not batch:
                        queue.remove(batch)
                        self._limits.withdraw(instance)
                    return instance, not batch
        return None

    def abandon(self, instance: Instance) -> List[Request]:
        """The instance is gone: the requests that were held for it, in order."""
        return self._forget([request for batch in self._held.pop(instance, ()) for request in batch])

    def _forget(self, requests: List[Request]) -> List[Request]:
        for request in requests if self._deadlines else ():
            self._deadlines.pop(request, None)
        return requests
