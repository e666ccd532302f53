"""What /proc says of a process: whether it runs at all, and what it does with a signal."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Dict, Optional, Set

from .deadlines import Process

# Fields of /proc/<pid>/stat after the name, by proc(5).
_STATE, _MINOR_FAULTS, _MAJOR_FAULTS, _USER_TIME, _SYSTEM_TIME = 0, 7, 9, 11, 12


def process_of(pid: int) -> Optional[Process]:
    """Its state, which is that of its main thread, and its progress: time on a core and pages touched, of all threads. None if it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
        progress = sum(int(fields[index]) for index in (_MINOR_FAULTS, _MAJOR_FAULTS, _USER_TIME, _SYSTEM_TIME))
        return Process(fields[_STATE].decode(), progress)
    return None


def catches(pid: int, signum: int) -> bool:
    """Whether it has a handler for a signal."""
    return bool(int(_status(f"/proc/{pid}/status").get("SigCgt", "0"), 16) & _bit(signum))


def blocking(pid: int, signum: int) -> Set[int]:
    """Its threads that do not take a signal now, as while they handle it."""
    threads: Set[int] = set()
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            if int(_status(f"/proc/{pid}/task/{thread}/status").get("SigBlk", "0"), 16) & _bit(signum):
                threads.add(int(thread))
    return threads


def _status(path: str) -> Dict[str, str]:
    with suppress(OSError), open(path) as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    return {}


def _bit(signum: int) -> int:
    return 1 << (signum - 1)
