"""What is given back when the GPU has done with it: by a thread of its own, because that has to be waited for."""

from __future__ import annotations

import queue
import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Callable, Deque, Tuple

from ..error import TritonModelException

if TYPE_CHECKING:
    from .memory import Lease

_AT_ONCE = 64


class Releases:
    """``give_back`` and ``later`` only note something: in any thread, and in the collection of garbage. ``dropped``: where blocks go that can
    be given back. ``tell``: has what is there told to the server."""

    def __init__(self) -> None:
        self.dropped: Deque[Tuple[int, int]] = deque()
        self.tell: Callable[[], None] = lambda: None
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = False

    def start(self) -> None:
        """Starts the thread, once. Before anything is made that will have to be given back."""
        if not self._started:
            with self._lock:
                if not self._started:
                    self._started = True
                    threading.Thread(target=self._run, name="stublet-gpu-releases", daemon=True).start()

    def give_back(self, lease: Lease) -> None:
        """Gives a block back to who lent it, when nothing reads it any more."""
        self._work.put(lambda: self._end(lease))

    def later(self, work: Callable[[], None]) -> None:
        """Calls it in the thread. What it raises is printed."""
        self._work.put(work)

    def _end(self, lease: Lease) -> None:
        try:
            lease.fence()
        finally:
            self.dropped.append(lease.key)

    def _run(self) -> None:
        while True:
            self._do(self._work.get())
            for _ in range(_AT_ONCE):
                if self._work.empty():
                    break
                self._do(self._work.get())
            if self.dropped:
                self.tell()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except TritonModelException:
            traceback.print_exc()


releases = Releases()
"""Those of this process."""
