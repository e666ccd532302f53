"""Host policies (``--host-policy``): on which cores instances run (spec 5.3)."""

from __future__ import annotations

import os
import re
from typing import Dict, FrozenSet, List, Sequence

_NODES = "/sys/devices/system/node"
_CPU_CORES, _NUMA_NODE = "cpu-cores", "numa-node"

Cores = FrozenSet[int]


class HostPolicies:
    """What ``--host-policy=<policy>,<setting>=<value>`` says, given any number of times. The settings are ``cpu-cores``, as in ``0-3,8``, and
    ``numa-node``, the number of one, whose cores it stands for; the first goes before the second. Groups that name no policy have that of
    their kind: ``cpu`` or ``model``.

    Args:
        nodes: the directory where the system describes its NUMA nodes.

    Raises:
        ValueError: that is not its form, or there are no such cores, or this process may not use them.
    """

    def __init__(self, texts: Sequence[str] = (), nodes: str = _NODES) -> None:
        settings: Dict[str, Dict[str, str]] = {}
        for text in texts:
            policy, comma, setting = text.partition(",")
            key, equals, value = setting.partition("=")
            if not policy or not comma or not equals or not value:
                raise ValueError(f"'{text}' is not of the form <policy>,<setting>=<value>")
            if key not in (_CPU_CORES, _NUMA_NODE):
                raise ValueError(f"Unsupported host policy setting '{key}' is specified, supported settings are 'numa-node', 'cpu-cores'")
            settings.setdefault(policy, {})[key] = value
        self._cores = {policy: _cores_of(policy, found, nodes) for policy, found in settings.items()}

    def cores(self, policy: str) -> Cores:
        """The cores that instances of that policy may use."""
        return self._cores.get(policy) or allowed()

    def pinned(self, policy: str) -> bool:
        """Whether the policy says anything."""
        return policy in self._cores


def allowed() -> Cores:
    """The cores that this process may use."""
    return frozenset(os.sched_getaffinity(0))


def _cores_of(policy: str, settings: Dict[str, str], nodes: str) -> Cores:
    node = _cores_of_node(settings[_NUMA_NODE], nodes) if _NUMA_NODE in settings else frozenset()
    if _CPU_CORES not in settings:
        cores = node & allowed()
        if not cores:
            raise ValueError(
                f"policy '{policy}': this process may use no core of NUMA node {settings[_NUMA_NODE]}, only {spelled(allowed())}"
            )
        return cores
    cores = parse_cores(settings[_CPU_CORES])
    if not cores <= allowed():
        raise ValueError(
            f"policy '{policy}': there are no cores {spelled(cores - allowed())} that this process may use, only {spelled(allowed())}"
        )
    return cores


def _cores_of_node(text: str, nodes: str) -> Cores:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise ValueError(f"'numa-node' is the number of a node, not '{text}'")
    try:
        with open(os.path.join(nodes, f"node{int(text)}", "cpulist")) as file:
            return parse_cores(file.read().strip())
    except OSError:
        raise ValueError(f"there is no NUMA node {text}; there are: {_nodes(nodes)}") from None


def _nodes(nodes: str) -> str:
    names = os.listdir(nodes) if os.path.isdir(nodes) else []
    numbers = sorted(int(name[len("node") :]) for name in names if re.fullmatch("node[0-9]+", name))
    return ", ".join(map(str, numbers)) or "none"


def parse_cores(text: str) -> Cores:
    """The cores of ``0-3,8``.

    Raises:
        ValueError: that is not its form.
    """
    cores: List[int] = []
    for part in text.split(","):
        found = re.fullmatch("([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ValueError(f"cores are given as in 0-3,8, the lower of a range first, not as '{text}'")
        cores += range(first, last + 1)
    return frozenset(cores)


def spelled(cores: Cores) -> str:
    """The shortest text that ``parse_cores`` reads."""
    ranges: List[List[int]] = []
    for core in sorted(cores):
        if ranges and ranges[-1][1] == core - 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
