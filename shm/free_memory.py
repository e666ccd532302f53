"""How much memory there still is: of the machine, and of the control groups (cgroup v1 and v2) that bound this process.

Shared memory counts against the limit of a group like any other memory, and a process that passes the limit is killed. So what does not
fit is refused before it is tried.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Dict, List, NamedTuple, Optional

_CGROUP = "/sys/fs/cgroup"
_UNLIMITED = 1 << 60
"""A limit from here on is none: version 1 has no word for it."""

_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_"
_VERSION_2 = "memory.max", "memory.current", "memory.stat", ""

_KEEP_FREE = 64 << 20
"""What is left to others; of a group of less than 1 GiB, a 16th."""


class Group(NamedTuple):
    """The files of a control group that tell of its memory."""

    limit: str
    usage: str
    statistics: str
    cached: str
    """What, in the statistics, the names of memory begin with that goes when it is wanted."""


class Shortage(NamedTuple):
    """``available``: in bytes. ``whose``: who has no more, as a text calls it."""

    whose: str
    available: int


def shortage(nbytes: int, groups: Optional[List[Group]] = None, meminfo: str = "/proc/meminfo") -> Optional[Shortage]:
    """Who has no room for so many more bytes; None if there is room.

    Args:
        groups: those of this process, unless others are given.
    """
    available = _of_machine(meminfo, b"MemAvailable:")
    if available is not None and nbytes + _KEEP_FREE > available:
        return Shortage("the machine", available)
    for group in _groups() if groups is None else groups:
        limit = limit_of(group)
        if limit is None:
            continue
        left = limit - (_number(group.usage) or 0)
        needed = nbytes + min(_KEEP_FREE, limit >> 4)
        if needed > left:
            left += _reclaimable(group)
            if needed > left:
                return Shortage(f"the container (cgroup), which may have {limit},", max(left, 0))
    return None


def total_memory() -> int:
    """Memory of the machine, or of the smallest group that this process is in, in bytes."""
    limits = [limit_of(group) for group in _groups()]
    return min([limit for limit in (_of_machine("/proc/meminfo", b"MemTotal:"), *limits) if limit is not None], default=_UNLIMITED)


def limit_of(group: Group) -> Optional[int]:
    """How much memory the group may have, None for any amount."""
    limit = _number(group.limit)
    return limit if limit is not None and limit < _UNLIMITED else None


def groups_of(cgroup: str, membership: str) -> List[Group]:
    """The groups that a process is in, from the innermost to the root, as far as they can be seen.

    Args:
        cgroup: where the file systems of control groups are mounted.
        membership: the text of ``/proc/<pid>/cgroup``.
    """
    found: Dict[Group, None] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots, names = [cgroup, os.path.join(cgroup, "unified")], _VERSION_2
        elif "memory" in controllers.split(","):
            roots, names = [os.path.join(cgroup, "memory")], _VERSION_1
        else:
            continue
        limit, usage, statistics, cached = names
        for root in roots:
            # In a container the path may be the host's, of which only the end, or nothing, is there.
            parts = path.strip("/").split("/")
            for count in range(len(parts), -1, -1):
                place = os.path.join(root, *parts[:count])
                if os.path.exists(os.path.join(place, limit)):
                    files = [os.path.join(place, name) for name in (limit, usage, statistics)]
                    found[Group(files[0], files[1], files[2], cached)] = None
    return list(found)


_found: List[List[Group]] = []


def _groups() -> List[Group]:
    if not _found:
        membership = ""
        with suppress(OSError), open("/proc/self/cgroup") as file:
            membership = file.read()
        _found.append(groups_of(_CGROUP, membership))
    return _found[0]


def _reclaimable(group: Group) -> int:
    """Pages of files, which the kernel drops before it kills anyone."""
    names = {f"{group.cached}inactive_file", f"{group.cached}active_file"}
    with suppress(OSError, ValueError), open(group.statistics) as file:
        return sum(int(line.split()[1]) for line in file if line.split()[0] in names)
    return 0


def _of_machine(meminfo: str, name: bytes) -> Optional[int]:
    with suppress(OSError), open(meminfo, "rb") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def _number(path: str) -> Optional[int]:
    with suppress(OSError, ValueError), open(path, "rb") as file:
        return int(file.read())
    return None
