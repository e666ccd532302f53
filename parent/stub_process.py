"""A stub as a process: its control socket, its output, and its end. What it is for, an instance or an auto-completion, is the owner's."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from contextlib import ExitStack, suppress
from typing import Any, Callable, Iterable, List, Mapping, Optional, Protocol, Sequence, Tuple

from ..shm.control import ControlSocket, close_all
from ..shm.errors import PeerGone, ProtocolError
from .flood import BoundedLog
from .lifecycle import IllegalTransition
from .log import LEVELS
from .placement.placement import ANYWHERE, Placement
from .sandbox.config import NO_SANDBOX, Sandbox
from .spawner import Spawner
from .stub_output import LineReader, StackReader
from .supervision.cause import Cause, Death, cause_of
from .supervision.oom_kills import OomKillsOf

_MESSAGES_A_TURN = 8
"""How many control messages are read before the loop's other callbacks have their turn; one may hold dozens of lines for the log."""

_MESSAGES_AT_ONCE = 4096

_REPORT_SECONDS = 1.0
"""So long the fork server may take to say how a process ended that has."""

_HUNG_UP_SECONDS = 2.0
"""How long after its control socket a stub may live."""

_MOST_CHARACTERS = 32 << 10

Log = Callable[..., None]


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

    def on_end(self, death: Death) -> None:
        """It ended. Whatever it said before has been passed on."""


class StubProcess:
    """``start`` it; the owner is told the rest.

    Args:
        log: takes (level, file, line, text) of what the stub prints, and traceback and request id, too, of what it logs.
    """

    def __init__(self, owner: Owner, log: Log) -> None:
        self._owner = owner
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._told = BoundedLog(self._loop, log)
        self._pidfd: Optional[int] = None
        self._hung_up = False
        self._timers: List[asyncio.TimerHandle] = []
        self._verdict: Optional[Cause] = None
        self._doomed = False
        self.stacks_lock = asyncio.Lock()
        """Held by whoever has asked for stacks and waits for them."""
        self._oom_kills: Optional[OomKillsOf] = None
        self.pid: Optional[int] = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def start(
        self,
        spawner: Spawner,
        interpreter: Optional[str],
        variables: Mapping[str, Optional[str]],
        placement: Placement = ANYWHERE,
        sandbox: Sandbox = NO_SANDBOX,
    ) -> None:
        """Asks the fork server for the process.

        Raises:
            OSError: no descriptor is to be had.
        """
        self._control, far = ControlSocket.pair()
        with far, ExitStack() as made:
            made.callback(self._control.close)
            self._stdout = LineReader(self._loop, lambda line: self._log(logging.INFO, "stdout", 0, line))
            made.callback(self._stdout.discard)
            self._stderr = LineReader(self._loop, lambda line: self._log(logging.WARNING, "stderr", 0, line))
            made.callback(self._stderr.discard)
            self._stacks = StackReader(self._loop)
            made.pop_all()
            self._control.set_blocking(False)
            self._loop.add_reader(self._control.fileno(), self._on_readable)
            outputs = (self._stdout, self._stderr, self._stacks)
            spawner.spawn(self, interpreter, variables, placement, sandbox, (far.fileno(), *(output.write_end for output in outputs)))
        for output in outputs:
            output.close_write_end()

    def tell(self, message: Tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        """Sends a control message; one to a stub that is gone is dropped. In any thread."""
        try:
            self._control.send(message, fds)
        except PeerGone:
            return
        except OSError as error:
            if error.errno != errno.EBADF:  # that is how it is when it has ended just now
                # It does not read, or there is no descriptor for a long message: it would wait for what it is not told.
                self._loop.call_soon_threadsafe(self._owner.on_violation, str(error))

    def condemn(self, cause: Cause) -> None:
        """It is to be ended, for that: the cause of its death, unless there is one already."""
        self._verdict = self._verdict or cause

    def kill(self) -> None:
        """Ends the process, whatever it does; one that is still to be spawned, as soon as it is."""
        self._doomed = True
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """Sends it a signal, if it is there."""
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signum)
            elif self.pid is not None and not self.ended.done():
                os.kill(self.pid, signum)

    def collect(self) -> None:
        """Reads the control messages that have arrived, at most 4,096 of them."""
        for _ in range(_MESSAGES_AT_ONCE):
            if self._hung_up or not self._read():
                return

    def log(self, lines: Iterable[Sequence[Any]]) -> None:
        """Logs what the stub has sent for the log, but for floods.

        Raises:
            TypeError, ValueError, KeyError: that is not a sequence of lines.
        """
        for level, *line in lines:
            self._told(LEVELS[level], *line)

    def last_lines(self) -> List[str]:
        """The last lines of its stderr, at most 50 and 8 KiB."""
        return self._stderr.last_lines()

    def take_stacks(self) -> str:
        """What its faulthandler has written since the last time."""
        return self._stacks.take()

    def look_for_oom_kills(self, now: float) -> None:
        """Call every few seconds: what the kernel ended long ago for want of memory does not explain its end."""
        if self._oom_kills is not None:
            self._oom_kills.look(now)

    def find_cgroup(self) -> None:
        """Finds out where the kernel counts what it ends for want of memory; again when it may have moved."""
        if self.pid is not None:
            self._oom_kills = OomKillsOf.of(self.pid, self._loop.time())

    # Events of the spawner

    def on_spawned(self, pid: int) -> None:
        self.pid = pid
        with suppress(OSError):  # it has ended already, or the container's system calls do not include this one
            self._pidfd = os.pidfd_open(pid)
            self._loop.add_reader(self._pidfd, self._on_dead, self._pidfd)
        self.find_cgroup()
        self._owner.on_spawned()
        if self._doomed:
            self.kill()

    def on_exit(self, status: Optional[int]) -> None:
        """The process ended: with that exit code, or, negative, by that signal; None when nobody could wait for it."""
        if self.ended.done():
            return  # it is not waited for any more
        self.collect()
        self._hang_up()
        for timer in self._timers:
            timer.cancel()
        self._stdout.finish()
        self._stderr.finish()
        self._stacks.finish()
        self._told.close()
        self._control.close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._owner.on_end(self._death(status))
        self.ended.set_result(None)

    def _on_dead(self, pidfd: int) -> None:
        """The process is no more. The fork server says how it ended, unless that is stuck."""
        self._loop.remove_reader(pidfd)
        self._timers.append(self._loop.call_later(_REPORT_SECONDS, self.on_exit, None))

    def _death(self, status: Optional[int]) -> Death:
        oom = None
        if status == -signal.SIGKILL and self._verdict is None and self._oom_kills is not None:
            oom = self._oom_kills.claim(self._loop.time())
        last = self.last_lines()
        return Death(self.pid, cause_of(status, self._verdict, oom, last), last, self.take_stacks().strip("\n"))

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
            self._timers.append(self._loop.call_later(_HUNG_UP_SECONDS, self._end_unheard))
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

    def _end_unheard(self) -> None:
        """It has closed its control socket, and goes on as if nothing were."""
        if not self.ended.done() and not _is_exiting(self.pid):
            self._owner.on_violation("it closed its control socket")

    def _hang_up(self) -> None:
        if not self._hung_up:
            self._hung_up = True
            self._loop.remove_reader(self._control.fileno())


def why_not_loaded(text: Any, trace: Any) -> Tuple[str, str]:
    """What a stub says of that, of which no more is kept than people read: it goes to clients, and into every list of models.

    Args:
        trace: a traceback, or "".

    Raises:
        TypeError: it is no text.
    """
    if type(text) is not str or type(trace) is not str:
        raise TypeError(f"why it did not load is text, not {type(text).__name__} and {type(trace).__name__}")
    return _shortened(text), _shortened(trace)


def _shortened(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} ... {text[-half:]}"


def _is_exiting(pid: Optional[int]) -> bool:
    """Whether the process is on its way out: its memory is gone, and what else it has may take the kernel a while."""
    with suppress(OSError), open(f"/proc/{pid}/statm") as file:
        return file.read().startswith("0 ")
    return True
