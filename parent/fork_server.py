"""Starts the fork server's process. In a module of its own that imports little: the command line does this first of all, so that the
fork server imports numpy while the server imports everything else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Collection, List, NamedTuple

from .libc import copy_tuning

_END_SECONDS = 5.0
_LOOK_SECONDS = 0.005


class ForkServer(NamedTuple):
    """The process, and this side's end of its control socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    @classmethod
    def start(cls) -> ForkServer:
        """Starts it; ``Spawner`` takes it over. To be called in a thread that lives as long as the server."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        main = os.path.join(stub_directory(), "__main__.py")
        with far:
            process = subprocess.Popen(
                [sys.executable, main, "--spawner", str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **copy_tuning()},
            )
        near.settimeout(_END_SECONDS)
        return cls(process, near)

    def stop(self) -> None:
        """Ends it, and with it any stub that is left, what stubs started, and the server's temporary directories."""
        self.control.close()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # not even SIGKILL ends what waits in the kernel
                self.process.wait(_END_SECONDS)


def end_sessions(sessions: Collection[int], seconds: float = _END_SECONDS) -> None:
    """Ends every process of these sessions: what stubs started whose fork server was killed, so that nobody is left who knows their
    children. Waits for them ``seconds`` at most."""
    deadline = time.monotonic() + seconds
    while (left := _members(sessions)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)


def _members(sessions: Collection[int]) -> List[int]:
    found = []
    for name in os.listdir("/proc"):
        with suppress(ValueError, OSError):
            if os.getsid(int(name)) in sessions and _runs(int(name)):
                found.append(int(name))
    return found


def _runs(pid: int) -> bool:
    """Whether it runs, rather than to wait for its parent to ask how it ended."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"


def stub_directory() -> str:
    """Where the room ``stub`` is, without importing it: it belongs to the other process."""
    from .. import shm

    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(str(shm.__file__)))), "stub")
