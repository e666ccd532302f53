"""A stub as a process: its control socket, its output, and its end. What it is for, an instance or an auto-completion, is the owner's."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import Any, Callable, Mapping, Optional, Protocol, Sequence, Tuple

from ..shm.control import ControlSocket, close_all
from ..shm.errors import PeerGone, ProtocolError
from .lifecycle import IllegalTransition
from .placement.placement import ANYWHERE, Placement
from .spawner import Spawner
from .stub_output import LineReader

_MESSAGES_A_TURN = 8
"""How many control messages are read before the loop's other callbacks have their turn; one may hold dozens of lines for the log."""

_MESSAGES_AT_ONCE = 4096

Log = Callable[[int, str, int, str], None]


class Owner(Protocol):
    """Who is told about the process. Every method is called in the server's loop."""

    def on_spawned(self) -> None:
        """Its pid is known."""

    def on_message(self, message: Tuple[Any, ...], fds: Sequence[int]) -> None:
        """It said something; the descriptors are closed afterwards.

        Raises:
            ProtocolError, IllegalTransition, TypeError, ValueError, KeyError: it may not say that.
        """

    def on_violation(self, why: str) -> None:
        """``on_message`` raised, or what came was no message."""

    def on_end(self, how: str) -> None:
        """It ended: ``how`` is its exit code or signal. Whatever it said before has been passed on."""


class StubProcess:
    """``start`` it; the owner is told the rest.

    Args:
        log: takes (level, file, line, text) of what the stub prints.
    """

    def __init__(self, owner: Owner, log: Log) -> None:
        self._owner = owner
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._pidfd: Optional[int] = None
        self._hung_up = False
        self.pid: Optional[int] = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def start(
        self, spawner: Spawner, interpreter: Optional[str], variables: Mapping[str, Optional[str]], placement: Placement = ANYWHERE
    ) -> None:
        """Asks the fork server for the process.

        Raises:
            OSError: no descriptor is to be had.
        """
        self._control, far = ControlSocket.pair()
        self._stdout = LineReader(self._loop, lambda line: self._log(logging.INFO, "stdout", 0, line))
        self._stderr = LineReader(self._loop, lambda line: self._log(logging.WARNING, "stderr", 0, line))
        self._control.set_blocking(False)
        self._loop.add_reader(self._control.fileno(), self._on_readable)
        with far:
            spawner.spawn(self, interpreter, variables, placement, (far.fileno(), self._stdout.write_end, self._stderr.write_end))
        self._stdout.close_write_end()
        self._stderr.close_write_end()

    def tell(self, message: Tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        """Sends a control message; one to a stub that is gone is dropped. In any thread."""
        try:
            self._control.send(message, fds)
        except PeerGone:
            return
        except TimeoutError as error:
            self._loop.call_soon_threadsafe(self._owner.on_violation, str(error))

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif self.pid is not None and not self.ended.done():
                os.kill(self.pid, signal.SIGKILL)

    def collect(self) -> None:
        """Reads the control messages that have arrived, at most 4,096 of them."""
        for _ in range(_MESSAGES_AT_ONCE):
            if self._hung_up or not self._read():
                return

    def last_lines(self) -> str:
        """The last lines of its stderr, at most 20."""
        return self._stderr.last_lines()

    # Events of the spawner

    def on_spawned(self, pid: int) -> None:
        self.pid = pid
        with suppress(OSError):  # it has ended already, or the container's system calls do not include this one
            self._pidfd = os.pidfd_open(pid)
        self._owner.on_spawned()

    def on_exit(self, status: Optional[int]) -> None:
        """The process ended: with that exit code, or, negative, by that signal; None when nobody could wait for it."""
        self.collect()
        self._hang_up()
        self._stdout.finish()
        self._stderr.finish()
        self._control.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._owner.on_end(_describe_exit(status))
        self.ended.set_result(None)

    def _on_readable(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if self._hung_up or not self._read():
                return

    def _read(self) -> bool:
        """Passes one message on; False when there is none."""
        try:
            message, fds = self._control.receive()
        except BlockingIOError:
            return False
        except PeerGone:
            # The fork server will say how the process ended; until then there is nothing more to read.
            self._hang_up()
            return False
        except ProtocolError as error:
            self._owner.on_violation(str(error))
            return True
        try:
            self._owner.on_message(message, fds)
        except (ProtocolError, IllegalTransition) as error:
            self._owner.on_violation(str(error))
        except (TypeError, ValueError, KeyError) as error:
            self._owner.on_violation(f"malformed control message: {error}")
        finally:
            close_all(fds)
        return True

    def _hang_up(self) -> None:
        if not self._hung_up:
            self._hung_up = True
            self._loop.remove_reader(self._control.fileno())


def _describe_exit(status: Optional[int]) -> str:
    if status is None:
        return "an unknown status"
    if status < 0:
        with suppress(ValueError):
            return signal.Signals(-status).name
        return f"signal {-status}"
    return f"exit code {status}"
