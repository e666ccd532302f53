"""Checks of the kernel and of its limits: shared memory, descriptors, processes, memory, cores."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from contextlib import suppress
from typing import Callable, Iterator, Optional, Tuple

from ...shm.errors import OutOfSharedMemory
from ...shm.segment import Segment
from ..byte_size import size
from .finding import Finding, failure, ok, warning

SHM = "/dev/shm"
CGROUP = "/sys/fs/cgroup"

_MIB = 1 << 20
_LITTLE_MEMORY = 1024 * _MIB
_SEGMENT_BYTES = _MIB
_DESCRIPTORS_OF_SERVER, _DESCRIPTORS_OF_INSTANCE = 128, 10
_MANY_INSTANCES = 100
_PROCESSES = 64


def check_shared_memory(directory: str = SHM) -> Finding:
    """Whether segments can be had, and where."""
    what = "shared memory"
    try:
        Segment.create(1, _SEGMENT_BYTES).close()
    except OutOfSharedMemory as error:
        return failure(what, str(error), f"free some space in {directory}, or allow the process more memory")
    if _can_memfd():
        return ok(what, "without a name (memfd_create), whatever the size of " + directory)
    advice = "permit memfd_create, with which neither its size matters nor a stub can truncate memory; or docker run --shm-size=1g"
    if not os.path.isdir(directory):
        return failure(what, f"memfd_create is refused, and {directory} does not exist", advice)
    usage = shutil.disk_usage(directory)
    return warning(what, f"memfd_create is refused; {directory} has {size(usage.free)} free of {size(usage.total)}", advice)


def _can_memfd() -> bool:
    try:
        os.close(os.memfd_create("stublet-doctor"))
    except (OSError, AttributeError):  # an interpreter that was built for an old C library does not have it
        return False
    return True


def check_system_calls() -> Finding:
    """Whether the sandbox of a container permits what the server and its stubs do. Each call is made once."""
    calls: Tuple[Tuple[str, Callable[[], int]], ...] = (
        ("eventfd", lambda: os.eventfd(0)),
        ("memfd_create", lambda: os.memfd_create("stublet-doctor")),
        ("pidfd_open", lambda: os.pidfd_open(os.getpid())),
    )
    refused = []
    for name, call in calls:
        try:
            os.close(call())
        except OSError as error:
            refused.append((name, error))
    if not refused:
        return ok("system calls", ", ".join(name for name, _ in calls))
    names = ", ".join(f"{name} ({error.strerror})" for name, error in refused)
    without = [name for name, _ in refused]
    advice = "permit them in the container's seccomp profile, or use a kernel of 5.3 or newer"
    if without == ["pidfd_open"]:
        return warning("system calls", f"refused: {names}", f"{advice}; without it stubs are ended by their pid")
    return failure("system calls", f"refused: {names}", advice)


def check_descriptors() -> Finding:
    """The limit of open descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok("descriptors", "no limit")
    instances = max(soft - _DESCRIPTORS_OF_SERVER, 0) // _DESCRIPTORS_OF_INSTANCE
    text = f"{soft}, enough for about {instances} instances, or as many connections beside fewer"
    if instances < _MANY_INSTANCES:
        return warning("descriptors", text, "raise it: ulimit -n 65536, docker run --ulimit nofile=65536, LimitNOFILE= of a systemd unit")
    return ok("descriptors", text)


def check_processes(cgroup: str = CGROUP) -> Finding:
    """How many processes and threads may still be started."""
    left = _pids_left(cgroup)
    if left is None:
        return ok("processes", "no limit in this container")
    text = f"{left} more may be started in this container"
    if left < _PROCESSES:
        return warning(
            "processes", text, "every instance is a process with some threads: docker run --pids-limit, TasksMax= of a systemd unit"
        )
    return ok("processes", text)


def check_memory(cgroup: str = CGROUP, meminfo: str = "/proc/meminfo") -> Finding:
    """Memory that is available, and the container's limit, which counts shared memory too."""
    available = _available(meminfo)
    limit = _number(os.path.join(cgroup, "memory.max"))
    used = _number(os.path.join(cgroup, "memory.current")) or 0
    text = f"{size(available)} available"
    if limit is not None:
        available = min(available, max(limit - used, 0))
        text = f"{size(available)} available, of {size(limit)} in this container, shared memory included"
    if available < _LITTLE_MEMORY:
        return warning(
            "memory", text, "an instance with numpy takes 30 MB, one with torch 300 MB and more: raise the container's limit, or serve less"
        )
    return ok("memory", text)


def check_cores(cgroup: str = CGROUP) -> Finding:
    """The cores that the server may use: with one, it cannot look for answers while a stub computes."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    text = f"{cores}" if quota is None else f"{cores}, of which the container may use {quota:.1f} at a time"
    if min(cores, quota or cores) < 2:
        return warning("cores", text, "give it two: with one, server and stubs take turns and every request waits for a wake-up")
    return ok("cores", text)


def check_signals() -> Finding:
    """SIGCHLD must reach the fork server, which tells how stubs ended."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        return failure(
            "signals", "SIGCHLD is ignored, so nobody is told how a stub ended", "do not start the server from a shell with trap '' CHLD"
        )
    return ok("signals", "SIGCHLD arrives")


def machine_checks() -> Iterator[Finding]:
    """All of them."""
    yield check_cores()
    yield check_memory()
    yield check_shared_memory()
    yield check_system_calls()
    yield check_descriptors()
    yield check_processes()
    yield check_signals()


def _number(path: str) -> Optional[int]:
    """The number in a file of the cgroup; None if there is none, or it says "max"."""
    with suppress(OSError, ValueError), open(path) as file:
        return int(file.read())
    return None


def _pids_left(cgroup: str) -> Optional[int]:
    most = _number(os.path.join(cgroup, "pids.max"))
    return None if most is None else max(most - (_number(os.path.join(cgroup, "pids.current")) or 0), 0)


def _quota(cgroup: str) -> Optional[float]:
    with suppress(OSError, ValueError), open(os.path.join(cgroup, "cpu.max")) as file:
        quota, period = file.read().split()
        return int(quota) / int(period)
    return None


def _available(meminfo: str) -> int:
    with open(meminfo) as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    raise OSError(errno.ENODATA, "no MemAvailable", meminfo)
