"""All stacks of a server and its stubs, for people: asked for by ``stublet dump`` or with SIGUSR1.

``stublet dump`` connects to an abstract Unix socket whose name follows from the server's pid. Who is neither root nor the server's user
gets nothing: stacks tell paths, and more.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Iterator, List, Optional

from .stacks import stacks_of

if TYPE_CHECKING:
    from ..core import Core
    from ..instance import Instance

STUB_SECONDS = 3.0
"""So long a stub may take to write its stacks."""

_WRITE_SECONDS = 10.0
_MOST_TASKS = 500
_CREDENTIALS = struct.Struct("3i")
_ROOT = 0

logger = logging.getLogger(__name__)


def address_of(pid: int) -> str:
    """Where the server of that pid tells its stacks. Containers may share the names of sockets but not pids."""
    return f"\0stublet-dump/{os.stat('/proc/self/ns/pid').st_ino}/{pid}"


async def dump(core: Core) -> str:
    """The stacks of every thread and task of this process, and of every stub, within seconds."""
    own = "\n\n".join([f"server (pid {os.getpid()})", *_threads(), *_tasks()])
    stubs = await asyncio.gather(*map(_of_instance, core.watcher.instances))
    return "\n\n\n".join([own, *stubs]) + "\n"


async def _of_instance(instance: Instance) -> str:
    head = f"model '{instance.model.name}', version {instance.model.version}, instance '{instance.name}' (pid {instance.pid})"
    head += f", {instance.state.value}, executing {instance.executing}"
    return f"{head}\n\n{await stacks_of(instance.process, STUB_SECONDS)}"


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"Thread '{names.get(ident, '?')}' (most recent call last):\n" + "".join(traceback.format_stack(frame)).rstrip()


def _tasks() -> Iterator[str]:
    tasks = sorted(asyncio.all_tasks(), key=asyncio.Task.get_name)
    for task in tasks[:_MOST_TASKS]:
        yield f"Task '{task.get_name()}', {_what(task)} (most recent call last):\n" + "".join(_stack(task)).rstrip()
    if len(tasks) > _MOST_TASKS:
        yield f"... and {len(tasks) - _MOST_TASKS} more tasks"


def _what(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


def _stack(task: asyncio.Task[Any]) -> List[str]:
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in task.get_stack())
    return summary.format()


class DumpService:
    """Of a process that serves. ``start`` and ``stop`` it in its loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._server: Optional[asyncio.AbstractServer] = None

    async def start(self) -> None:
        """Answers ``stublet dump`` and SIGUSR1 from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._on_signal)
        # At once, whatever holds up the loop; and then what the loop has to tell.
        faulthandler.register(signal.SIGUSR1, chain=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(address_of(os.getpid()))
            self._server = await asyncio.start_unix_server(self._answer, sock=listening)
        except OSError as error:
            listening.close()
            logger.warning("'stublet dump' will get no answer: %s", error)

    def stop(self) -> None:
        """Answers nobody any more."""
        faulthandler.unregister(signal.SIGUSR1)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
        # What comes now is no reason to die.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if self._server is not None:
            self._server.close()

    def _on_signal(self) -> None:
        self._core.keep(asyncio.get_running_loop().create_task(self._log()))

    async def _log(self) -> None:
        logger.info("stacks, as SIGUSR1 asks for:\n%s", await dump(self._core))

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _is_trusted(writer.get_extra_info("socket")):
                writer.write((await dump(self._core)).encode("utf-8", "backslashreplace"))
            with suppress(asyncio.TimeoutError, ConnectionError):
                await asyncio.wait_for(writer.drain(), _WRITE_SECONDS)
        finally:
            writer.close()


def _is_trusted(peer: Any) -> bool:
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (_ROOT, os.geteuid())
