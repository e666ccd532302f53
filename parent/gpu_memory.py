"""How much memory of GPUs who has: what instances export and import, as the server knows it, and what their processes use, as NVML does."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Dict, NamedTuple

if TYPE_CHECKING:
    from .core import Core
    from .instance import Instance


class Shared(NamedTuple):
    """Of an instance, in bytes: what others can read, and what it was told of that others, or clients, have."""

    exported: int
    imported: int


def shared(core: Core) -> Dict[Instance, Shared]:
    """Of all instances there are."""
    sizes = core.client_memory.cuda_sizes()
    exported: Dict[Instance, int] = {}
    known: Dict[Instance, frozenset[int]] = {}
    for model in core.alive:
        with model.lock:
            for instance in model.instances:
                own = {segment.id: segment.size for segment in instance.device_segments}
                sizes.update(own)
                # What is out of use takes room all the same, until it can be freed.
                exported[instance] = sum(own.values()) + sum(segment.size for segment in core.device_memory.retired.of(instance))
                known[instance] = frozenset(instance.channel.loans.known.difference(own))
    return {instance: Shared(exported[instance], sum(sizes.get(number, 0) for number in known[instance])) for instance in exported}


def by_process() -> Dict[int, int]:
    """Bytes of GPUs that each process uses, by its pid: of those that NVML knows by the numbers that they have here, which it does not in
    a container of another process namespace. Empty without ``nvidia-ml-py``, and without a GPU. Blocks for milliseconds."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        return _by_process(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _by_process(nvml: Any) -> Dict[int, int]:
    found: Dict[int, int] = {}
    with suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index)):
                    if process.usedGpuMemory is not None:  # it does not tell under WSL2, and of parts of a GPU
                        found[process.pid] = found.get(process.pid, 0) + process.usedGpuMemory
    return found
