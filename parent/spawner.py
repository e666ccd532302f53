"""The server's end of the fork server: asks it for stubs, and passes on how they end. If it dies, every stub dies with it, and another is
started for the next one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import Any, Dict, Mapping, Optional, Protocol, Sequence, Set, Tuple

from ..shm.control import EXITED, SPAWN, SPAWNED, TEMPORARY, ControlSocket
from ..shm.errors import PeerGone, ProtocolError
from .fork_server import ForkServer, end_sessions
from .placement.placement import Placement
from .sandbox.cgroups import CgroupError, Cgroups
from .sandbox.config import Sandbox

logger = logging.getLogger(__name__)

SPAWN_SECONDS = 60.0
"""How long the fork server may take to fork."""


class Spawned(Protocol):
    """Who is told about a process."""

    def on_spawned(self, pid: int) -> None: ...

    def on_exit(self, status: Optional[int]) -> None: ...


class Spawner:
    """``attach`` it to a loop, then ``spawn``."""

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._control = ControlSocket(fork_server.control)
        self._gone = False
        self.cgroups = Cgroups()
        self._in_cgroups: Dict[Spawned, str] = {}
        self._temporary: Set[str] = set()
        self._waiting: Dict[int, Tuple[Spawned, asyncio.TimerHandle]] = {}
        """Who is told, and when they are not waited for any more, by the key."""
        self._running: Dict[int, Tuple[int, Spawned]] = {}
        """The pid, and who is told, by the key."""
        self._next_key = 0
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reads the fork server's messages in that loop from now on."""
        self._loop = loop
        loop.add_reader(self._control.fileno(), self._on_message)

    def remove_at_end(self, directory: str) -> None:
        """Has a directory removed when the server is gone, however it ended."""
        self._temporary.add(directory)
        self._tell_temporary(directory)

    def spawn(
        self,
        stub: Spawned,
        interpreter: Optional[str],
        environment: Mapping[str, Optional[str]],
        placement: Placement,
        sandbox: Sandbox,
        fds: Tuple[int, ...],
    ) -> None:
        """Asks for a process with the descriptors (control socket, stdout, stderr, stacks); ``stub`` is told how it goes.

        Args:
            interpreter: path of another interpreter than the server's.
            environment: variables to set, or, with None, to remove.

        If there is no fork server any more, and no other can be started, it is told that the process ended.
        """
        assert self._loop is not None
        self._next_key += 1
        key = self._next_key
        variables = {**environment, **placement.variables, **(sandbox.user.variables if sandbox.user else {})}
        cores = None if placement.cores is None else sorted(placement.cores)
        try:
            cgroup = self.cgroups.make(sandbox.cgroup)
            if cgroup:
                self._in_cgroups[stub] = cgroup
            message = (SPAWN, key, interpreter, variables, cores, placement.threads, sandbox.settings(cgroup))
            try:
                self._send(message, fds)
            except PeerGone:
                self._on_gone()
                self._send(message, fds)
        except (PeerGone, OSError, CgroupError) as error:
            logger.error("a process cannot be started: %s", error)
            self._loop.call_soon(self._ended, stub, None)
            return
        self._waiting[key] = stub, self._loop.call_later(SPAWN_SECONDS, self._give_up, key)

    def close(self) -> None:
        """Ends the fork server, and with it any stub that is left."""
        if self._loop is not None and not self._gone:
            self._loop.remove_reader(self._control.fileno())
        self._fork_server.stop()
        for cgroup in self._in_cgroups.values():
            self.cgroups.remove(cgroup)
        self.cgroups.close()

    def _ended(self, stub: Spawned, status: Optional[int]) -> None:
        cgroup = self._in_cgroups.pop(stub, None)
        stub.on_exit(status)  # which reads there why it ended
        if cgroup is not None:
            assert self._loop is not None
            self._loop.run_in_executor(None, self.cgroups.remove, cgroup)

    def _send(self, message: Tuple[Any, ...], fds: Sequence[int]) -> None:
        if self._gone:
            self._restart()
        self._control.send(message, fds)

    def _restart(self) -> None:
        assert self._loop is not None
        self._fork_server = ForkServer.start()
        self._control = ControlSocket(self._fork_server.control)
        self._gone = False
        self.attach(self._loop)
        for directory in self._temporary:
            self._tell_temporary(directory)

    def _tell_temporary(self, directory: str) -> None:
        with suppress(PeerGone, OSError):  # one that is gone, or stuck: another will be told, or nobody can
            self._control.send((TEMPORARY, directory))

    def _awaited(self, key: int) -> Optional[Spawned]:
        """Who waited for news of that process, and does no more."""
        stub, timer = self._waiting.pop(key, (None, None))
        if timer is not None:
            timer.cancel()
        return stub

    def _give_up(self, key: int) -> None:
        stub = self._awaited(key)
        if stub is not None:
            logger.error("the fork server (pid %d) did not start a process within %.0f s", self._fork_server.process.pid, SPAWN_SECONDS)
            self._ended(stub, None)

    def _on_message(self) -> None:
        try:
            message, _ = self._control.receive()
        except PeerGone:
            self._on_gone()
            return
        self._handle(message)

    def _handle(self, message: Tuple[Any, ...]) -> None:
        if message[0] == SPAWNED:
            _, key, pid = message
            stub = self._awaited(key)
            if stub is None:
                with suppress(ProcessLookupError):  # it came too late
                    os.kill(pid, signal.SIGKILL)
                return
            self._running[key] = pid, stub
            stub.on_spawned(pid)
        elif message[0] == EXITED:
            _, key, status = message
            ended = self._awaited(key)
            if key in self._running:
                _, ended = self._running.pop(key)
            if ended is not None:
                self._ended(ended, status)
        else:
            raise ProtocolError(f"the fork server says {message[0]!r}")

    def _on_gone(self) -> None:
        """The fork server died, and its children with it."""
        assert self._loop is not None
        if self._gone:
            return
        self._gone = True
        self._loop.remove_reader(self._control.fileno())
        self._fork_server.stop()
        logger.error("the fork server ended unexpectedly; every model instance ended with it")
        if self._running:
            self._loop.run_in_executor(None, end_sessions, {pid for pid, _ in self._running.values()})
        left = [*(stub for stub, _ in self._waiting.values()), *(stub for _, stub in self._running.values())]
        for key in list(self._waiting):
            self._awaited(key)
        self._running.clear()
        for stub in left:
            self._ended(stub, None)
