"""Batches of one model that its scheduler has handed to an instance, and that wait until the rate limiter lets it execute them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Deque, Dict, List, Optional, Tuple

from .rate_limits import RateLimits

if TYPE_CHECKING:
    from ..instance import Instance
    from ..request import Request


class HeldBatches:
    """All methods are called under the model's lock."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._held: Dict[Instance, Deque[List[Request]]] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(batch) for queue in self._held.values() for batch in queue)

    def next_after(self, instance: Instance, batch: List[Request]) -> Optional[List[Request]]:
        """Holds a batch, and asks for it. If the instance may execute, what it is to execute: batches keep their order."""
        self._held.setdefault(instance, deque()).append(batch)
        return self.granted(instance) if self._limits.ask(instance) else None

    def granted(self, instance: Instance) -> Optional[List[Request]]:
        """The instance may execute: what it is to execute, or None if nothing is left of what it asked for."""
        queue = self._held.get(instance)
        if not queue:
            self._limits.release(instance)
            return None
        return queue.popleft()

    def returned(self, instance: Instance, count: int) -> None:
        """The instance is done with that many batches."""
        self._limits.release(instance, count)

    def withdraw(self, request: Request) -> Optional[Tuple[Instance, bool]]:
        """Takes a request out of its batch: the instance that has it, and whether nothing is left of it; None if it is not here."""
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
        return [request for batch in self._held.pop(instance, ()) for request in batch]
