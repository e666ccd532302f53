"""``instance_group`` of a configuration (spec 5.3): what it may be, and the instances that it asks for."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Tuple

from .gpus import LEAST_CAPABILITY, own_gpu_only, supported_gpus

_MOST_INSTANCES = 4096
"""Each is a process."""


class InstanceSpec(NamedTuple):
    """One instance: its name (``<group>_<index>``), kind as a model sees it, and device, the number of a GPU of the server's if that is GPU.
    ``passive``: it is never scheduled. ``policy``: the host policy that says where it runs. ``resources``: what the rate limiter has to grant
    for an execution, as (name, whether all devices share it, count). ``priority``: with 2 it gets half as many turns as with 1."""

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
        gpus = supported_gpus() if group.kind in (group.KIND_AUTO, group.KIND_GPU) else ()
        if group.kind == group.KIND_AUTO:
            group.kind = group.KIND_GPU if gpus else group.KIND_CPU
        if group.kind == group.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)


def check_instance_groups(config: Any, name: str) -> None:
    """Checks the groups of a completed configuration.

    Raises:
        ValueError: with Triton's text where it has one.
    """
    if sum(group.count * max(len(group.gpus), 1) for group in config.instance_group) > _MOST_INSTANCES:
        raise ValueError(f"model {name} must have at most {_MOST_INSTANCES} instances")
    for group in config.instance_group:
        where = f"instance group {group.name} of model {name}"
        kind = group.Kind.Name(group.kind)
        if group.kind != group.KIND_GPU:
            if group.gpus:
                raise ValueError(f"{where} has kind {kind} but specifies one or more GPUs")
            continue
        if not group.gpus:
            raise ValueError(f"{where} has kind {kind} but no GPUs are available")
        gpus = supported_gpus()
        for gpu in group.gpus:
            if gpu not in gpus:
                raise ValueError(
                    f"{where} specifies invalid or unsupported gpu id {gpu}. GPUs with at least the minimum required CUDA compute "
                    f"compatibility of {LEAST_CAPABILITY:.6f} are: {', '.join(map(str, gpus))}"
                )
    own_gpu_only(config)


def instance_specs(config: Any) -> List[InstanceSpec]:
    """Every instance of every group of a checked configuration."""
    specs = []
    for group in config.instance_group:
        kind = group.Kind.Name(group.kind)[len("KIND_") :]
        resources = tuple([(needed.name, bool(getattr(needed, "global")), needed.count) for needed in group.rate_limiter.resources])
        devices = list(group.gpus) if group.kind == group.KIND_GPU else [0]
        for index, device in enumerate(devices * group.count):
            policy = group.host_policy or (f"gpu_{device}" if group.kind == group.KIND_GPU else kind.lower())
            specs.append(InstanceSpec(f"{group.name}_{index}", kind, device, group.passive, policy, resources, group.rate_limiter.priority))
    return specs
