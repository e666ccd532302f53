"""The server's end of the fork server: asks it for stubs, and passes on how they end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Dict, List, Mapping, Optional, Protocol, Tuple

from ..shm.control import EXITED, SPAWN, SPAWNED, ControlSocket
from ..shm.errors import PeerGone, ProtocolError
from .fork_server import ForkServer
from .placement.placement import Placement

logger = logging.getLogger(__name__)


class Spawned(Protocol):
    """Who is told about a process."""

    def on_spawned(self, pid: int) -> None: ...

    def on_exit(self, status: Optional[int]) -> None: ...


class Spawner:
    """``attach`` it to a loop, then ``spawn``."""

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._control = ControlSocket(fork_server.control)
        self._waiting: Dict[int, Spawned] = {}
        self._running: Dict[int, Spawned] = {}
        self._next_key = 0
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reads the fork server's messages in that loop from now on."""
        self._loop = loop
        loop.add_reader(self._control.fileno(), self._on_message)

    def spawn(
        self,
        stub: Spawned,
        interpreter: Optional[str],
        environment: Mapping[str, Optional[str]],
        placement: Placement,
        fds: Tuple[int, int, int],
    ) -> None:
        """Asks for a process with the descriptors (control socket, stdout, stderr); ``stub`` is told how it goes.

        Args:
            interpreter: path of another interpreter than the server's.
            environment: variables to set, or, with None, to remove.
        """
        self._next_key += 1
        self._waiting[self._next_key] = stub
        variables = {**environment, **placement.variables}
        cores = None if placement.cores is None else sorted(placement.cores)
        self._control.send((SPAWN, self._next_key, interpreter, variables, cores, placement.threads), fds)

    def close(self) -> None:
        """Ends the fork server, and with it any stub that is left."""
        if self._loop is not None:
            self._loop.remove_reader(self._control.fileno())
        self._fork_server.stop()

    def _on_message(self) -> None:
        try:
            message, _ = self._control.receive()
        except PeerGone:
            self._gone()
            return
        self._handle(message)

    def _handle(self, message: Tuple[Any, ...]) -> None:
        if message[0] == SPAWNED:
            _, key, pid = message
            stub = self._waiting.pop(key)
            self._running[pid] = stub
            stub.on_spawned(pid)
        elif message[0] == EXITED:
            _, pid, status = message
            self._running.pop(pid).on_exit(status)
        else:
            raise ProtocolError(f"the fork server says {message[0]!r}")

    def _gone(self) -> None:
        """The fork server died, and its children with it."""
        assert self._loop is not None
        self._loop.remove_reader(self._control.fileno())
        logger.error("the fork server ended unexpectedly; every model instance ended with it")
        left: List[Spawned] = [*self._waiting.values(), *self._running.values()]
        self._waiting.clear()
        self._running.clear()
        for stub in left:
            stub.on_exit(None)
