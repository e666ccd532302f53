"""cgroups of version 2 for stubs, below the server's own, where the server may write there: in a container with its own namespace of
cgroups that are mounted writable, or a unit of systemd with ``Delegate=yes``. cgroups(7), "Delegating a Hierarchy".

    <the server's>/                      no process any more, because its groups share controllers out
    <the server's>/stublet-<pid>/        the server, and stubs without limits
    <the server's>/stublet-<pid>-<n>/    a stub with limits, and what it starts
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import List, NamedTuple, Optional, Tuple

_PREFIX = "stublet-"
_PERIOD_US = 100_000
_REMOVE_SECONDS = 5.0
_LOOK_SECONDS = 0.01


class Limits(NamedTuple):
    """``memory`` in bytes, ``cores`` of processor time; 0 for no limit."""

    memory: int = 0
    cores: float = 0.0

    @property
    def controllers(self) -> Tuple[str, ...]:
        """What the kernel needs for them."""
        return ("memory",) * bool(self.memory) + ("cpu",) * bool(self.cores)


class CgroupError(Exception):
    """A limit cannot be set; the text says why."""


class Cgroups:
    """``make`` and ``remove`` them. Any thread may; what blocks does so for the moment that the kernel takes.

    Args:
        base: the directory of the server's own; None to find it.
    """

    def __init__(self, base: Optional[str] = None) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._enabled: List[str] = []
        self._made = 0
        self._own = ""

    def make(self, limits: Limits) -> str:
        """The directory of a new one; "" without limits.

        Raises:
            CgroupError: it cannot be made.
        """
        if not limits.controllers:
            return ""
        with self._lock:
            base = self._find_base()
            for controller in limits.controllers:
                self._enable(base, controller)
            self._made += 1
            path = os.path.join(base, f"{_PREFIX}{os.getpid()}-{self._made}")
        try:
            os.mkdir(path)
            if limits.memory:
                _write(path, "memory.max", str(limits.memory))
                with suppress(OSError):  # a system without swap has no such file
                    _write(path, "memory.swap.max", "0")
                # All of it: a stub of which only a worker was killed may wait for that for ever.
                _write(path, "memory.oom.group", "1")
            if limits.cores:
                _write(path, "cpu.max", f"{round(limits.cores * _PERIOD_US)} {_PERIOD_US}")
        except OSError as error:
            with suppress(OSError):
                os.rmdir(path)
            raise CgroupError(f"'{path}': {error.strerror}") from error
        return path

    def remove(self, path: str) -> None:
        """Ends what is left in it, and removes it."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                os.rmdir(path)
                return
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return
            with suppress(OSError):
                _write(path, "cgroup.kill", "1")
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Puts the server back to where it was."""
        with self._lock:
            if self._base is None or not self._own:
                return
            with suppress(OSError):
                _write(self._base, "cgroup.subtree_control", " ".join(f"-{controller}" for controller in self._enabled))
                for pid in _pids(self._own):
                    _write(self._base, "cgroup.procs", str(pid))
                os.rmdir(self._own)
            self._own = ""

    def _find_base(self) -> str:
        if self._base is None:
            self._base = own_directory()
            self._sweep(self._base)
        return self._base

    def _sweep(self, base: str) -> None:
        """Removes what servers left that were killed: a cgroup without processes."""
        with suppress(OSError):
            for name in os.listdir(base):
                if name.startswith(_PREFIX):
                    with suppress(OSError):
                        os.rmdir(os.path.join(base, name))

    def _enable(self, base: str, controller: str) -> None:
        if controller in self._enabled:
            return
        if controller not in _words(base, "cgroup.controllers"):
            raise CgroupError(f"'{base}' has no controller '{controller}'; it is not delegated to the server, or not of version 2")
        try:
            if controller not in _words(base, "cgroup.subtree_control"):
                if not self._own and os.path.exists(os.path.join(base, "cgroup.type")):  # which the root has not, and may have both
                    self._move_in(base)
                _write(base, "cgroup.subtree_control", f"+{controller}")
                self._enabled.append(controller)
        except OSError as error:
            raise CgroupError(f"'{base}': {error.strerror}; it has to be delegated to the server") from error

    def _move_in(self, base: str) -> None:
        """Moves the server into a group of its own."""
        pids = _pids(base)
        others = [pid for pid in pids if not _is_ours(pid)]
        if others:
            raise CgroupError(f"'{base}' has other processes than the server's, such as {others[0]}: start it in a cgroup of its own")
        path = os.path.join(base, f"{_PREFIX}{os.getpid()}")
        os.mkdir(path)
        self._own = path
        while pids:
            for pid in pids:
                with suppress(ProcessLookupError):
                    _write(path, "cgroup.procs", str(pid))
            pids = _pids(base)


def own_directory() -> str:
    """The directory of this process's cgroup of version 2.

    Raises:
        CgroupError: there is none.
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            own = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), None)
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            mounts = [line.split() for line in file]
    except OSError as error:
        raise CgroupError(f"this system does not say which cgroups there are: {error}") from error
    for fields in mounts:
        if own is not None and fields[fields.index("-") + 1] == "cgroup2":
            root, point = fields[3], fields[4]
            inside = os.path.relpath(own, root)
            if not inside.startswith(os.pardir):
                return os.path.normpath(os.path.join(point, inside))
    raise CgroupError("there are no cgroups of version 2 here")


def _is_ours(pid: int) -> bool:
    """Whether a process is this one, or descends from it."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return True  # it is gone
    return pid == os.getpid()


def _pids(directory: str) -> List[int]:
    return [int(pid) for pid in _words(directory, "cgroup.procs")]


def _words(directory: str, name: str) -> List[str]:
    with suppress(OSError), open(os.path.join(directory, name), encoding="ascii") as file:
        return file.read().split()
    return []


def _write(directory: str, name: str, text: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="ascii") as file:
        file.write(text)
