"""The fork server: starts every stub, and says when and how each of them ended.

It has imported what a stub needs (numpy alone takes 70 ms and more), so a stub of the server's own interpreter is a fork of 2 ms
that shares those pages; one with an interpreter of its own is a fork and an exec. It runs no other thread, no event loop and no
CUDA, without which fork would not be safe. It is the parent of all stubs and the one who can wait for them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, Dict, List, Optional, Tuple

import msgpack

from ..shm.control import EXITED, SPAWN, SPAWNED, ControlSocket, close_all
from ..shm.errors import PeerGone, ProtocolError
from .thread_counts import ThreadCounts

_PR_SET_PDEATHSIG = 1
_STARTUP_FAILED = 127


class Spawner:
    """Serves requests to spawn on ``control``."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._threads = ThreadCounts()
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> Optional[int]:
        """Serves until the server is gone. In each forked child, returns the descriptor of its control socket: the child is a stub."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()
        events = select.poll()
        events.register(self._control.fileno(), select.POLLIN)
        events.register(self._wake, select.POLLIN)
        while True:
            events.poll(None)
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._report_exits()
            self._control.set_blocking(False)
            try:
                message, fds = self._control.receive()
            except BlockingIOError:
                continue
            except PeerGone:
                # The children get SIGKILL with the end of this process: a stub does not outlive its server.
                return None
            finally:
                self._control.set_blocking(True)
            if message[0] != SPAWN or len(fds) != 3:
                raise ProtocolError(f"not a request to spawn: {message[0]!r} with {len(fds)} descriptors")
            control_fd = self._spawn(message, fds)
            if control_fd is not None:
                return control_fd

    def _spawn(self, message: Tuple[Any, ...], fds: List[int]) -> Optional[int]:
        _, key, interpreter, environment, cores, threads = message
        control_fd, stdout, stderr = fds
        parent = os.getpid()
        if interpreter is None:
            self._threads.set(threads)
        pid = os.fork()
        if pid:
            close_all(fds)
            self._control.send((SPAWNED, key, pid))
            return None
        try:
            self._become_stub(parent, stdout, stderr, environment)
            if cores is not None:
                os.sched_setaffinity(0, cores)
            if interpreter is None:
                self._control.close()
                return control_fd
            os.set_inheritable(control_fd, True)
            main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
            os.execv(interpreter, [interpreter, main, "--control", str(control_fd), os.path.dirname(msgpack.__file__)])
        except OSError as error:
            os.write(2, f"{interpreter or sys.executable} cannot be started: {error.strerror}\n".encode())
        os._exit(_STARTUP_FAILED)

    def _become_stub(self, parent: int, stdout: int, stderr: int, environment: Dict[str, Optional[str]]) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_STARTUP_FAILED)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        close_all((stdout, stderr, self._wake, self._woken))
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        random.seed()
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()

    def _report_exits(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            with suppress(PeerGone):
                self._control.send((EXITED, pid, os.waitstatus_to_exitcode(status)))


def main(control_fd: int) -> Optional[int]:
    """Runs the fork server; returns the control descriptor in a child that is to be a stub, None when the server is gone."""
    return Spawner(ControlSocket(socket.socket(fileno=control_fd))).run()
