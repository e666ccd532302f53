"""What Linux tells about other processes: who descends from whom, CPU time, memory, listeners."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
_SCHEDULED = 2  # CPUCLOCK_SCHED of linux/posix-timers.h


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process, in MiB.

    `proportional` (PSS) counts a page that n processes share as 1/n; `private` counts only pages
    that no other process has.
    """

    proportional: float
    private: float


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, ended ones too; 0 if it has gone.

    The process's POSIX CPU clock counts nanoseconds, where /proc/PID/stat counts ticks of 10 ms and
    /proc/PID/schedstat sees the main thread only. The number is clock_getcpuclockid(3)'s.
    """
    try:
        return time.clock_gettime((~pid << 3) | _SCHEDULED)
    except OSError:
        return 0.0


def descendants(root: int) -> list[int]:
    """Pids of the children of `root`, their children, and so on."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents().items():
        children[parent].append(pid)
    found: list[int] = []
    pending = [root]
    while pending:
        below = children[pending.pop()]
        found += below
        pending += below
    return found


def is_alive(pid: int) -> bool:
    """Whether a process exists and is more than an unreaped exit status."""
    try:
        return _stat_fields(pid)[0] != "Z"
    except OSError:
        return False


def memory(pid: int) -> Memory:
    """Raises OSError if the process has gone or belongs to somebody else."""
    kib: defaultdict[str, int] = defaultdict(int)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        kib[name] = int(value)
    return Memory(kib["Pss:"] / 1024, (kib["Private_Clean:"] + kib["Private_Dirty:"]) / 1024)


def listener(port: int) -> int | None:
    """The process on this machine that listens on a TCP port: the eldest, where children share it.

    None if there is none, or if it runs as another user or in another network namespace.
    """
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not os.path.exists(table):
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    parents = _parents()
    owners = {pid for pid in parents if inodes & _open_files(pid)} if inodes else set()
    return next((pid for pid in sorted(owners) if parents[pid] not in owners), None)


def _parents() -> dict[int, int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(_stat_fields(int(entry))[1])
            except OSError:
                continue
    return parents


def _stat_fields(pid: int) -> list[str]:
    """State, parent, ... of /proc/PID/stat: what follows the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _open_files(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    targets: set[str] = set()
    try:
        for entry in os.listdir(folder):
            targets.add(os.readlink(f"{folder}/{entry}"))
    except OSError:
        pass
    return targets
