"""Whether the kernel ended a process for want of memory: it counts, for a cgroup or for the whole system, how many it has ended so."""

from __future__ import annotations

import os
import re
from collections import deque
from contextlib import suppress
from typing import Deque, NamedTuple, Optional, Tuple
from weakref import WeakValueDictionary

LATE = 30.0
"""Seconds. So long the end of a process may take that has been killed: its memory has to be given back."""

_CGROUPS = "/sys/fs/cgroup"
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_NO_LIMIT = 1 << 60
"""A limit of that many bytes, or of "max", is none."""


class OomKills:
    """How many processes of a cgroup were killed so, each of which explains one death. ``look`` now and then, ``claim`` at a death."""

    def __init__(self) -> None:
        self._seen: Deque[Tuple[float, int]] = deque()
        self._claimed = 0

    def look(self, now: float, count: int) -> None:
        """The count at that time, in seconds."""
        while len(self._seen) > 1 and self._seen[1][0] <= now - LATE:
            self._seen.popleft()
        if not self._seen or self._seen[-1][1] != count:
            self._seen.append((now, count))

    def claim(self, now: float, count: int) -> bool:
        """Whether one of those that were killed lately may be the one that is found dead now; it explains no other death then."""
        self.look(now, count)
        earlier = max(self._seen[0][1], self._claimed)
        if count <= earlier:
            return False
        self._claimed = earlier + 1
        return True


class Group(NamedTuple):
    """Where the kernel counts for a process: the file with the count, and the one with the limit, "" for none."""

    counter: str
    limit: str

    def killed(self) -> Optional[int]:
        """None when it cannot be read, or says nothing."""
        with suppress(OSError), open(self.counter) as file:
            found = _COUNT.search(file.read())
            return int(found[1]) if found else None
        return None

    def limit_text(self) -> str:
        """The limit, for people; "" if there is none."""
        with suppress(OSError, ValueError), open(self.limit) as file:
            nbytes = int(file.read())
            if nbytes < _NO_LIMIT:
                return f"the limit of its cgroup is {nbytes / (1 << 20):.0f} MiB"
        return ""


def group_of(pid: int) -> Optional[Group]:
    """The memory cgroup of a process, of version 2 or 1; without one the whole system. None when the kernel counts nowhere."""
    with suppress(OSError), open(f"/proc/{pid}/cgroup") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found = _first(path, "", "memory.events", "memory.max")
            elif "memory" in controllers.split(","):
                found = _first(path, "memory", "memory.oom_control", "memory.limit_in_bytes")
            else:
                continue
            if found is not None:
                return found
    system = Group("/proc/vmstat", "")
    return None if system.killed() is None else system


def _first(path: str, hierarchy: str, counter: str, limit: str) -> Optional[Group]:
    """In a container, what is mounted may begin at its own group."""
    for directory in (os.path.join(_CGROUPS, hierarchy, path.lstrip("/")), os.path.join(_CGROUPS, hierarchy)):
        group = Group(os.path.join(directory, counter), os.path.join(directory, limit))
        if group.killed() is not None:
            return group
    return None


class OomKillsOf:
    """The kills of a cgroup. Processes of the same one share it, see ``of``."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._kills = OomKills()

    @classmethod
    def of(cls, pid: int, now: float) -> Optional[OomKillsOf]:
        """That of a process; None where the kernel counts nothing."""
        group = group_of(pid)
        if group is None:
            return None
        kills = _kills.get(group)
        if kills is None:
            kills = _kills[group] = cls(group)
        kills.look(now)
        return kills

    def look(self, now: float) -> None:
        """Call every few seconds, so that kills of long ago explain nothing."""
        count = self._group.killed()
        if count is not None:
            self._kills.look(now, count)

    def claim(self, now: float) -> Optional[str]:
        """What is known of the limit if one of its processes was killed lately and no death explained by that; else None."""
        count = self._group.killed()
        if count is None or not self._kills.claim(now, count):
            return None
        return self._group.limit_text()


_kills: WeakValueDictionary[Group, OomKillsOf] = WeakValueDictionary()
