"""``dynamic_batching`` of a configuration (spec 5.4): what it may be, and what it says to the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple

from .batcher import Arrival, Batching, QueuePolicy

if TYPE_CHECKING:
    from ..request import Request

_MOST_LEVELS = 4096
"""Each has a queue."""


def is_batched(config: Any) -> bool:
    """Whether requests are executed together."""
    return bool(config.WhichOneof("scheduling_choice") == "dynamic_batching")


def check_batching(config: Any, name: str) -> None:
    """Checks the section.

    Raises:
        ValueError: with Triton's text.
    """
    if not is_batched(config):
        return
    batching = config.dynamic_batching
    for size in batching.preferred_batch_size:
        if size <= 0:
            raise ValueError(f"dynamic batching preferred size must be positive for {name}")
        if size > max(config.max_batch_size, 1):
            raise ValueError(f"dynamic batching preferred size must be <= max batch size for {name}")
    levels = batching.priority_levels
    if levels > _MOST_LEVELS:
        raise ValueError(f"'priority_levels' must be at most {_MOST_LEVELS} for {name}")
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise ValueError(f"default priority level must be in range [1, {levels}] for {name}")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise ValueError(f"priority queue policy must have priority level in range [1, {levels}] for {name}")
    if batching.preserve_ordering:
        if levels > 1:
            raise ValueError(f"Only one priority level is allowed when 'preserve_ordering' is true for {name}")
        if any(policy.timeout_action for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values())):
            raise ValueError(f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}")


def batching_of(config: Any, max_queue_size: int = 0) -> Batching:
    """What a checked configuration says.

    Args:
        max_queue_size: of a queue whose policy has none.
    """
    section = config.dynamic_batching
    return Batching(
        max_size=max(config.max_batch_size, 1),
        preferred=tuple(section.preferred_batch_size),
        delay_ns=section.max_queue_delay_microseconds * 1000,
        levels=max(section.priority_levels, 1),
        default_level=max(section.default_priority_level, 1),
        policies={level: _policy(policy, max_queue_size) for level, policy in section.priority_queue_policy.items()},
        default_policy=_policy(section.default_queue_policy, max_queue_size),
    )


def _policy(policy: Any, max_queue_size: int) -> QueuePolicy:
    timeout_ns = policy.default_timeout_microseconds * 1000
    return QueuePolicy(policy.max_queue_size or max_queue_size, timeout_ns, policy.allow_timeout_override, bool(policy.timeout_action))


def describer(config: Any) -> Callable[[Request], Arrival]:
    """What tells the scheduler what counts of a request to the model of that configuration."""
    ragged = {index for index, tensor in enumerate(config.input) if tensor.allow_ragged_batch}
    batches = config.max_batch_size > 0
    known: Dict[Any, Tuple[int, Tuple[Tuple[int, Tuple[int, ...]], ...]]] = {}

    def describe(request: Request) -> Arrival:
        inputs = request.inputs
        found = known.get(inputs)
        if found is None:
            first = 1 if batches else 0
            size = max(inputs[0][2][0], 1) if batches and inputs else 1
            found = size, tuple([(index, tuple(shape[first:])) for index, _, shape, *_ in inputs if index not in ragged])
            if len(known) >= _REMEMBERED:
                known.clear()
            known[inputs] = found
        timeout_us = request.extras[5] if request.extras else 0
        return Arrival(*found, request.priority, timeout_us * 1000)

    return describe


_REMEMBERED = 1024
