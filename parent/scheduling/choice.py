"""Which scheduler a configuration asks for (spec 5.4); that of models with sequences is in ``sequence``."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from .batcher import DynamicBatcher
from .batching import batching_of, describer, is_batched
from .scheduler import DefaultScheduler, Scheduler


def scheduler_for(config: Any, capacity: int, max_queue_size: int) -> Scheduler:
    """The scheduler of a model with that configuration, which was checked and has no sequences.

    Args:
        capacity: how many batches an instance executes at a time.
        max_queue_size: how many requests may wait where the configuration does not say; 0 for any number.
    """
    if is_batched(config):
        return DynamicBatcher(batching_of(config, max_queue_size), describer(config), capacity, attrgetter("submitted_ns"))
    return DefaultScheduler(capacity, max_queue_size)
