"""Starts the fork server's process. In a module of its own that imports little: the command line does this first of all, so that the
fork server imports numpy while the server imports everything else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Dict, NamedTuple

_END_SECONDS = 5.0

_CACHE_SIZE = "/sys/devices/system/cpu/cpu0/cache/index3/size"
_STREAMING_COPY = "glibc.cpu.x86_non_temporal_threshold"


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
                env={**os.environ, **_tuning()},
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


def _tuning() -> Dict[str, str]:
    """Makes large copies go past the cache, from a quarter of it on. That is glibc's own rule since 2.38; earlier ones, in a virtual machine,
    take the cache for that of the whole host, and 16 MiB then take a fifth longer. Other machines and libraries do not know the name."""
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    try:
        with open(_CACHE_SIZE) as file:
            size = file.read().strip()
    except OSError:
        return {}
    if _STREAMING_COPY in chosen or not size.endswith("K"):
        return {}
    tunable = f"{_STREAMING_COPY}={int(size[:-1]) * 1024 // 4}"
    return {"GLIBC_TUNABLES": f"{chosen}:{tunable}" if chosen else tunable}


def stub_directory() -> str:
    """Where the room ``stub`` is, without importing it: it belongs to the other process."""
    from .. import shm

    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(str(shm.__file__)))), "stub")
