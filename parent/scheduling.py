"""Which scheduler a configuration asks for (spec 5.4)."""

from __future__ import annotations

from typing import Any

from .batcher import DynamicBatcher
from .batching import batching_of, describer, is_batched
from .scheduler import DefaultScheduler, Scheduler


def scheduler_for(config: Any, capacity: int) -> Scheduler:
    """The scheduler of a model with that configuration, which was checked.

    Args:
        capacity: how many batches an instance executes at a time.
    """
    if is_batched(config):
        return DynamicBatcher(batching_of(config), describer(config), capacity)
    return DefaultScheduler(capacity)
