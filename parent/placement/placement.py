"""Where an instance runs, and how many threads its libraries start (spec 5.3).

numpy, torch and others start a thread for each core unless they are told otherwise, and so does every instance: with four of them on eight
cores, 32 threads get in each other's way. So the cores on which instances of a model run are divided among them. Whoever knows better says so:
a model with the parameter ``library_threads``, or the environment of the server with one of the variables that these libraries read.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .gpus import VISIBLE, own_gpu_only, visible
from .host_policy import Cores, HostPolicies
from .instance_groups import InstanceSpec, instance_specs

PARAMETER = "library_threads"
_OPENMP = "OMP_NUM_THREADS"
_OF_LIBRARIES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""Each goes before ``_OPENMP`` in its library; all others of these libraries, and torch, read that one."""

_MOST_THREADS = 4096
_QUOTA = "/sys/fs/cgroup/cpu.max"


class Placement(NamedTuple):
    """``cores``: on which the process runs; None for those of the server. ``threads``: of numerical libraries; None if they are left alone.
    ``variables``: of the environment, to be set, or, with None, removed. ``device``: the number that its GPU, if it has one, has in it."""

    cores: Optional[Cores] = None
    threads: Optional[int] = None
    variables: Mapping[str, Optional[str]] = {}
    device: int = 0

    @property
    def has_cores(self) -> bool:
        """Whether it may run on more than one core, as far as a policy says."""
        return self.cores is None or len(self.cores) > 1


ANYWHERE = Placement()


def check_threads(config: Any, name: str) -> None:
    """Checks the parameter.

    Raises:
        ValueError: not a number above 0.
    """
    _wanted(config, name)


def place(
    config: Any, policies: HostPolicies, environment: Mapping[str, str] = os.environ, quota: str = _QUOTA
) -> List[Tuple[InstanceSpec, Placement]]:
    """Every instance of a checked configuration, and where it runs.

    Args:
        environment: the server's.
        quota: the file that says how much time the server and its processes get.
    """
    specs = instance_specs(config)
    wanted = _wanted(config, config.name)
    isolated = own_gpu_only(config)
    placed = []
    for spec in specs:
        threads = wanted
        if threads is None and not any(variable in environment for variable in (_OPENMP, *_OF_LIBRARIES)):
            threads = _share(spec, specs, policies, quota)
        cores = policies.cores(spec.policy) if policies.pinned(spec.policy) else None
        variables = {} if threads is None else _variables(threads)
        device = spec.device
        if isolated:
            variables[VISIBLE], device = visible(device if spec.kind == "GPU" else None, environment), 0
        placed.append((spec, Placement(cores, threads, variables, device)))
    return placed


def _wanted(config: Any, name: str) -> Optional[int]:
    if PARAMETER not in config.parameters:
        return None
    text: str = config.parameters[PARAMETER].string_value
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= _MOST_THREADS:
        raise ValueError(f"parameter '{PARAMETER}' of model '{name}' must be a number from 1 to {_MOST_THREADS}, not '{text}'")
    return int(text)


def _share(spec: InstanceSpec, specs: Sequence[InstanceSpec], policies: HostPolicies, quota: str) -> int:
    cores = policies.cores(spec.policy)
    sharing = sum(not other.passive and not cores.isdisjoint(policies.cores(other.policy)) for other in specs)
    return max(usable_cores(cores, quota) // max(sharing, 1), 1)


def _variables(threads: int) -> Dict[str, Optional[str]]:
    return {_OPENMP: str(threads), **dict.fromkeys(_OF_LIBRARIES)}


def usable_cores(cores: Cores, quota: str = _QUOTA) -> int:
    """How many of these cores a process can keep busy, given how much of their time its container gets."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        with open(quota) as file:
            limit, period = file.read().split()
        if limit != "max":
            return max(min(len(cores), int(limit) // int(period)), 1)
    return len(cores)
