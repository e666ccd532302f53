"""The fork server: starts every stub, and says when and how each of them ended.

It has imported what a stub needs (numpy alone takes 70 ms and more), so a stub of the server's own interpreter is a fork of 2 ms
that shares those pages; one with an interpreter of its own is a fork and an exec. It runs no other thread, no event loop and no
CUDA, without which fork would not be safe. It is the parent of all stubs and the one who can wait for them.

When the server is gone, however it ended, it ends every stub and what stubs started, and removes the server's temporary directories. That it is
gone a closed socket says, or, while a process that the server forked has a copy of that, another parent.
It has a session of its own, so that nothing that is sent to the server's process group ends both at once.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import select
import shutil
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, Dict, List, Optional, Set, Tuple

import msgpack

from ..shm.control import EXITED, SPAWN, SPAWNED, TEMPORARY, ControlSocket, close_all
from ..shm.errors import PeerGone, ProtocolError
from . import sandbox
from .faults import STACKS_SIGNAL
from .orphans import Children
from .thread_counts import ThreadCounts

_PR_SET_PDEATHSIG = 1
_STARTUP_FAILED = 127
_END_SECONDS = 5.0


class Spawner:
    """Serves requests to spawn on ``control``."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._server = os.getppid()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._threads = ThreadCounts()
        self._children = Children(self._prctl)
        self._temporary: Set[str] = set()
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> Optional[Tuple[int, int]]:
        """Serves until the server is gone. In each forked child, which is a stub, returns the descriptors of its control socket and of
        the pipe for its stacks."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # A stub ignores the last until it has a handler for it.
        for signum in (signal.SIGINT, signal.SIGTERM, STACKS_SIGNAL):
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        # One that was stopped has to see that its server is gone, too.
        signal.signal(signal.SIGCONT, lambda *_: None)
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
        gc.collect()
        gc.freeze()
        events = select.poll()
        events.register(self._control.fileno(), select.POLLIN)
        events.register(self._wake, select.POLLIN)
        while True:
            events.poll(self._children.wait_ms())
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._report_exits()
            if os.getppid() != self._server:
                self._end()
                return None
            self._control.set_blocking(False)
            try:
                message, fds = self._control.receive()
            except BlockingIOError:
                continue
            except PeerGone:
                self._end()
                return None
            finally:
                self._control.set_blocking(True)
            if message[0] == TEMPORARY:
                self._temporary.add(message[1])
                continue
            if message[0] != SPAWN or len(fds) != 4:
                raise ProtocolError(f"not a request to spawn: {message[0]!r} with {len(fds)} descriptors")
            become = self._spawn(message, fds)
            if become is not None:
                return become

    def _spawn(self, message: Tuple[Any, ...], fds: List[int]) -> Optional[Tuple[int, int]]:
        _, key, interpreter, environment, cores, threads, limits = message
        control_fd, stdout, stderr, stacks = fds
        parent = os.getpid()
        if interpreter is None:
            self._threads.set(threads)
        try:
            pid = os.fork()
        except OSError as error:
            # No reason to end, which would be the end of every stub: there may be room for another process later.
            with suppress(OSError):
                os.write(stderr, f"{interpreter or sys.executable} cannot be started: {error.strerror}\n".encode())
            with suppress(PeerGone):
                self._control.send((EXITED, key, _STARTUP_FAILED))
            close_all(fds)
            return None
        if pid:
            close_all(fds)
            self._children.add(pid, key)
            return None
        try:
            # Not by the fork server, which may be kept from it for so long that the stub speaks first.
            with suppress(PeerGone):
                self._control.send((SPAWNED, key, os.getpid()))
            self._become_stub(parent, stdout, stderr, environment)
            if cores is not None:
                os.sched_setaffinity(0, cores)
            if limits:
                sandbox.enter(limits, self._prctl)
                # The kernel forgets it when the user changes.
                self._die_with(parent)
            if interpreter is None:
                self._control.close()
                return control_fd, stacks
            for fd in (control_fd, stacks):
                os.set_inheritable(fd, True)
            main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
            arguments = ["--control", str(control_fd), str(stacks), os.path.dirname(msgpack.__file__)]
            os.execv(interpreter, [interpreter, main, *arguments])
        except OSError as error:
            os.write(2, f"{interpreter or sys.executable} cannot be started: {error.strerror}\n".encode())
        os._exit(_STARTUP_FAILED)

    def _die_with(self, parent: int) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_STARTUP_FAILED)

    def _become_stub(self, parent: int, stdout: int, stderr: int, environment: Dict[str, Optional[str]]) -> None:
        self._die_with(parent)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGCONT, signal.SIGINT, signal.SIGTERM):
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
            ended = self._children.reap()
            if ended is None:
                break
            key, status = ended
            with suppress(PeerGone):
                self._control.send((EXITED, key, os.waitstatus_to_exitcode(status)))
        self._children.end_orphans()

    def _end(self) -> None:
        """Nothing outlives the server. What cannot be waited for gets SIGKILL with the end of this process, if it is a stub."""
        self._children.end_all(_END_SECONDS)
        for path in self._temporary:
            shutil.rmtree(path, ignore_errors=True)


def main(control_fd: int) -> Optional[Tuple[int, int]]:
    """Runs the fork server; returns the descriptors of a child that is to be a stub (see ``Spawner.run``), None when the server is gone."""
    os.set_inheritable(control_fd, False)
    return Spawner(ControlSocket(socket.socket(fileno=control_fd))).run()
