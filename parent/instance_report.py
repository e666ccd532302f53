"""What is running: the models of a server with their instances, queues, processes and memory."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence

from . import gpu_memory
from .placement.host_policy import spelled
from .repository_index import LOADING, READY, UNAVAILABLE, UNLOADING

if TYPE_CHECKING:
    from .core import Core
    from .instance import Instance
    from .servable import Servable

Report = Dict[str, Any]


def collect(core: Core) -> Report:
    """``server`` (``pid``, ``seconds`` that it runs) and ``models``: each version that has, or may have, processes, and each model that
    did not load. Of those, ``pending`` is how many requests wait, ``shared_memory_bytes`` what is reserved for tensors; of an instance,
    ``executing`` is how many requests it has been handed and has not answered, ``cores`` those of its host policy, ``threads`` how many its
    numerical libraries use, if the server says so, ``restarts`` how often it was started again because it had died, ``restart_in_seconds``
    when it will be, if that is waited for, ``gpu_exported_bytes`` and ``gpu_imported_bytes`` the memory of GPUs that it lets others read,
    and that of others, or of clients, that it may have open, ``memory_bytes`` and ``gpu_memory_bytes`` what ``weigh`` adds."""
    on_gpus = gpu_memory.shared(core)
    models = [_model(core, model, on_gpus) for model in sorted(core.alive, key=lambda model: (model.name, model.version))]
    named = {row["name"] for row in models}
    for name, reason in core.failures.items():
        if name not in named:
            models.append({**_nothing(name), "state": UNAVAILABLE, "reason": reason})
    models.sort(key=lambda row: row["name"])
    server = {"id": core.options.server_id, "pid": os.getpid(), "seconds": round(time.monotonic() - core.began, 3)}
    return {"server": server, "models": models}


def weigh(report: Report) -> Report:
    """Adds the memory of the processes, which takes the kernel a millisecond for each: the proportional share of what is resident, or
    None of one that has ended; and of GPUs what NVML knows that they use, or None. For another thread than the loop's."""
    on_gpus = gpu_memory.by_process()
    report["server"]["memory_bytes"] = memory_bytes(report["server"]["pid"])
    for model in report["models"]:
        for instance in model["instances"]:
            instance["memory_bytes"] = memory_bytes(instance["pid"])
            instance["gpu_memory_bytes"] = on_gpus.get(instance["pid"])
    return report


def memory_bytes(pid: Optional[int]) -> Optional[int]:
    """The proportional share of a process's resident memory: what it shares with others is divided among them."""
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        return int(fields["Pss"].split()[0]) << 10
    except (OSError, KeyError):  # it has ended, or is not ours to look at
        return None


def _nothing(name: str) -> Dict[str, Any]:
    return {"name": name, "version": "", "state": "", "reason": "", "pending": 0, "shared_memory_bytes": 0, "instances": []}


def _model(core: Core, model: Servable, on_gpus: Mapping[Instance, gpu_memory.Shared]) -> Dict[str, Any]:
    if core.models.get(model.name, {}).get(model.version) is model:
        state = READY if model.ready else UNAVAILABLE
    else:
        # One that was replaced or unloaded, and finishes what it was asked, is still ready.
        state = UNLOADING if model.stopping or model.ready else LOADING
    reserved = [*model.segments, *(segment for instance in model.instances for segment in instance.segments)]
    return {
        "name": model.name,
        "version": str(model.version),
        "state": state,
        "reason": model.reason if state == UNAVAILABLE else "",
        "pending": model.pending(),
        "shared_memory_bytes": _reserved(reserved),
        "instances": [_instance(instance, on_gpus.get(instance)) for instance in model.instances],
    }


def _reserved(segments: Sequence[Any]) -> int:
    return sum(segment.reserved for segment in segments)


def _instance(instance: Instance, on_gpus: Optional[gpu_memory.Shared]) -> Dict[str, Any]:
    cores = instance.placement.cores
    alive = instance.state.alive
    return {
        "name": instance.name,
        "pid": instance.pid if alive else None,
        "device": instance.spec.kind,
        "cores": spelled(cores) if cores is not None else "",
        "threads": instance.placement.threads,
        "passive": instance.spec.passive,
        "state": instance.state.value,
        "reason": instance.reason,
        "executing": instance.executing if alive else 0,
        "restarts": instance.restarts,
        "restart_in_seconds": instance.model.supervisor.restarts_in(instance),
        "gpu_exported_bytes": on_gpus.exported if on_gpus is not None else 0,
        "gpu_imported_bytes": on_gpus.imported if on_gpus is not None else 0,
    }
