"""What models start, such as worker processes: it ends with its instance, and all of it with the server.

Each stub leads a session, to which everything belongs that it starts, and what that starts. What loses its parent becomes the fork
server's child, as it would otherwise become that of the first process of the system, so nothing gets out of sight. A process that makes a
session of its own, as a daemon does, is ended with the server.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Callable, Dict, List, Optional, Set, Tuple

PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 0.002
_LEAST_WAIT_MS = 20

_GRACE_SECONDS = 0.4
"""For what Python's multiprocessing starts to remove the shared memory and semaphores of those that were killed."""


class Children:
    """The children of this process: stubs, and orphans of theirs. It has one thread only.

    Args:
        prctl: prctl(2).
    """

    def __init__(self, prctl: Callable[..., int]) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._stubs: Dict[int, int] = {}
        self._ended: Dict[int, float] = {}
        """The sessions of stubs that ended, of which processes may be left, and when those get SIGKILL."""
        self._asked: Set[int] = set()

    def add(self, pid: int, key: int) -> None:
        """A stub was started, which the server knows by that key."""
        self._stubs[pid] = key

    def reap(self) -> Optional[Tuple[int, int]]:
        """The next stub that ended, as (key, status of waitpid(2)); None if there is none. Orphans that ended go."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid in self._stubs:
                self._ended[pid] = time.monotonic() + _GRACE_SECONDS
                return self._stubs.pop(pid), status
            if pid == 0:
                return None

    def end_orphans(self) -> None:
        """Ends what stubs left that have ended. To be called whenever a child has, since its own children have become this process's, and
        after ``wait_ms``."""
        now, left = time.monotonic(), set()
        for pid in _children() if self._ended else ():
            with suppress(ProcessLookupError):
                session = os.getsid(pid)
                if session in self._ended and pid not in self._stubs:
                    left.add(session)
                    self._end(pid, now >= self._ended[session])
        self._ended = {session: until for session, until in self._ended.items() if session in left}
        if not self._ended:
            self._asked.clear()

    def wait_ms(self) -> Optional[int]:
        """How long ``end_orphans`` may wait for the next end of a child; None for any time."""
        if not self._ended:
            return None
        return max(_LEAST_WAIT_MS, int((min(self._ended.values()) - time.monotonic()) * 1000))

    def end_all(self, seconds: float) -> None:
        """Ends every child, and what becomes one by that, and waits for it for ``seconds`` at most."""
        began = now = time.monotonic()
        while now < began + seconds:
            for pid in _children():
                with suppress(ProcessLookupError):
                    self._end(pid, pid in self._stubs or now >= began + _GRACE_SECONDS)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()

    def _end(self, pid: int, at_once: bool) -> None:
        """By SIGTERM, once, and when its time is over by SIGKILL."""
        if at_once:
            os.kill(pid, signal.SIGKILL)
        elif pid not in self._asked:
            self._asked.add(pid)
            os.kill(pid, signal.SIGTERM)


def _children() -> List[int]:
    with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]
    return []
