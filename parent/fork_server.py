"""Starts the fork server's process. In a module of its own that imports little: the command line does this first of all, so that the
fork server imports numpy while the server imports everything else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import NamedTuple

from .libc import copy_tuning

_END_SECONDS = 5.0


class ForkServer(NamedTuple):
    """The process, and this side's end of its control socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    @classmethod
    def start(cls) -> ForkServer:
        """Starts it; ``Spawner`` takes it over."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        main = os.path.join(stub_directory(), "__main__.py")
        with far:
            process = subprocess.Popen(
                [sys.executable, main, "--spawner", str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **copy_tuning()},
            )
        return cls(process, near)

    def stop(self) -> None:
        """Ends it, and with it any stub that is left."""
        self.control.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def stub_directory() -> str:
    """Where the room ``stub`` is, without importing it: it belongs to the other process."""
    from .. import shm

    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(str(shm.__file__)))), "stub")
