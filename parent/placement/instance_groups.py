"""``instance_group`` of a configuration (spec 5.3): what it may be, and the instances that it asks for."""

from __future__ import annotations

import glob
from typing import Any, List, NamedTuple, Tuple

_GPUS = "/dev/nvidia[0-9]*"
_LEAST_COMPUTE_CAPABILITY = "6.000000"
_MOST_INSTANCES = 4096
"""Each is a process."""


class InstanceSpec(NamedTuple):
    """One instance: its name (``<group>_<index>``), kind as a model sees it, and device. ``passive``: it is never scheduled. ``policy``: the
    host policy that says where it runs. ``resources``: what the rate limiter has to grant for an execution, as (name, whether all devices
    share it, count). ``priority``: with 2 it gets half as many turns as with 1."""

    name: str
    kind: str
    device: int
    passive: bool = False
    policy: str = ""
    resources: Tuple[Tuple[str, bool, int], ...] = ()
    priority: int = 1


def complete_instance_groups(config: Any, name: str) -> None:
    """Fills in what Triton fills in."""
    if not config.instance_group:
        config.instance_group.add()
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{name}_{index}"
        group.count = max(group.count, 1)
        if group.kind == group.KIND_AUTO:
            group.kind = group.KIND_CPU


def check_instance_groups(config: Any, name: str) -> None:
    """Checks the groups of a completed configuration.

    Raises:
        ValueError: with Triton's text where it has one.
    """
    if sum(group.count for group in config.instance_group) > _MOST_INSTANCES:
        raise ValueError(f"model {name} must have at most {_MOST_INSTANCES} instances")
    for group in config.instance_group:
        where = f"instance group {group.name} of model {name}"
        kind = group.Kind.Name(group.kind)
        if group.kind != group.KIND_GPU:
            if group.gpus:
                raise ValueError(f"{where} has kind {kind} but specifies one or more GPUs")
        elif glob.glob(_GPUS):
            raise ValueError(f"{where} has kind {kind}, but this version of stublet runs instances on the CPU only")
        elif group.gpus:
            raise ValueError(
                f"{where} specifies invalid or unsupported gpu id {group.gpus[0]}. GPUs with at least the minimum required CUDA compute "
                f"compatibility of {_LEAST_COMPUTE_CAPABILITY} are: "
            )
        else:
            raise ValueError(f"{where} has kind {kind} but no GPUs are available")


def instance_specs(config: Any) -> List[InstanceSpec]:
    """Every instance of every group of a checked configuration."""
    specs = []
    for group in config.instance_group:
        kind = group.Kind.Name(group.kind)[len("KIND_") :]
        policy = group.host_policy or kind.lower()
        resources = tuple([(needed.name, bool(getattr(needed, "global")), needed.count) for needed in group.rate_limiter.resources])
        for index in range(group.count):
            name = f"{group.name}_{index}"
            specs.append(InstanceSpec(name, kind, 0, group.passive, policy, resources, group.rate_limiter.priority))
    return specs
