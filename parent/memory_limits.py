"""How much shared memory requests and instances may have, and for how long they may have it in no use."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ..shm.errors import OutOfSharedMemory
from ..shm.free_memory import total_memory
from .byte_size import parse_size, size

LIMIT_PARAMETER = "shm_limit"
"""Of a model: the most bytes that an instance of it may have for its outputs, instead of the server's limit."""

LEAST_LIMIT = 1 << 20
"""No limit is below what every model and every instance begins with."""

UNCOUNTED_BYTES = 64 << 10
"""A body that is gathered outside of shared memory counts from this size on."""

_SHARE = 2
"""By default, requests may have one in so many bytes of the memory there is, and so may an instance."""


@dataclass(slots=True)
class MemoryOptions:
    """``max_inflight_bytes``: memory for the inputs of all requests together. ``limit_per_instance``: shared memory for the outputs of
    an instance. 0 for half of the machine's memory, or of the container's. ``idle_secs``: memory that is in no use for so long goes back to
    the system."""

    max_inflight_bytes: int = 0
    limit_per_instance: int = 0
    idle_secs: float = 10.0


class RequestMemory:
    """What the request arenas of all models have between them, and the bodies that are not there yet. In any thread.

    Args:
        most: in bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int, what: str = "shared memory") -> None:
        """Counts a segment that is about to be made, or a part of a body that arrives.

        Raises:
            OutOfSharedMemory: it would be too much.
        """
        with self._lock:
            if self.taken + nbytes > self.most:
                raise OutOfSharedMemory(
                    f"{nbytes} bytes of {what} are needed, but requests have {self.taken} of the {self.most} bytes that they may have "
                    "at a time (--max-inflight-bytes)"
                )
            self.taken += nbytes

    def take_anyway(self, nbytes: int) -> None:
        """The same for what requests that are here already cannot do without."""
        with self._lock:
            self.taken += nbytes

    def give_back(self, nbytes: int) -> None:
        """A segment is no more, or a body was read."""
        with self._lock:
            self.taken -= nbytes


def request_memory(options: MemoryOptions) -> RequestMemory:
    return RequestMemory(options.max_inflight_bytes or _default())


def instance_limit(config: Any, options: MemoryOptions) -> int:
    """How many bytes of shared memory an instance of a model may have for its outputs.

    Raises:
        ValueError: the model's parameter is no number of bytes, or too small.
    """
    if LIMIT_PARAMETER not in config.parameters:
        return options.limit_per_instance or _default()
    text: str = config.parameters[LIMIT_PARAMETER].string_value
    try:
        limit = parse_size(text)
    except ValueError:
        limit = 0
    if limit < LEAST_LIMIT:
        raise ValueError(
            f"parameter '{LIMIT_PARAMETER}' of model '{config.name}' must be a number of bytes from {size(LEAST_LIMIT)} on, as in \"512MiB\", "
            f"not '{text}'"
        )
    return limit


def _default() -> int:
    return max(total_memory() // _SHARE, LEAST_LIMIT)
