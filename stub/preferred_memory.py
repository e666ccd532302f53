"""``pb_utils.PreferredMemory``: where a model wants the outputs of a request that it makes (spec 1.9)."""

from __future__ import annotations

from enum import IntEnum


class MemoryType(IntEnum):
    """Kinds of memory, with Triton's numbers."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU


class PreferredMemory:
    """A wish, for InferenceRequest's argument ``preferred_memory``.

    Args:
        preferred_memory_type: TRITONSERVER_MEMORY_GPU or TRITONSERVER_MEMORY_CPU.
        preferred_device_id: number of the GPU.

    Raises:
        TypeError: an argument of a wrong Python type.
    """

    __slots__ = ("_device_id", "_memory_type")

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        if not isinstance(preferred_memory_type, MemoryType):
            raise TypeError(
                "PreferredMemory: preferred_memory_type must be TRITONSERVER_MEMORY_GPU or TRITONSERVER_MEMORY_CPU, "
                f"not {type(preferred_memory_type).__name__}"
            )
        if not isinstance(preferred_device_id, int):
            raise TypeError(f"PreferredMemory: preferred_device_id must be int, not {type(preferred_device_id).__name__}")
        self._memory_type = preferred_memory_type
        self._device_id = preferred_device_id
