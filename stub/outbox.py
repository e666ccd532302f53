"""The up ring, written by any thread of the stub."""

from __future__ import annotations

import threading
from collections import deque
from time import sleep
from typing import Any, Deque, List, Sequence, Tuple

from ..shm.errors import OutOfSharedMemory
from ..shm.message import EMPTY, FAILURE, INDIRECT, NEWS, ErrorCode, packer
from ..shm.ring import RECORD_BYTES, Producer
from .memory import StubMemory

_FULL_SECONDS = 0.0002

_RELEASES_AT_ONCE = 200
"""So many fit a slot of the ring whatever their numbers are."""

Result = Tuple[Any, ...]


class Outbox:
    """``lock`` guards the ring, and whether a request was answered: who holds it may decide, and post, in one."""

    def __init__(self, up: Producer, memory: StubMemory) -> None:
        self._up = up
        self._memory = memory
        self._pack = packer()
        self.lock = threading.Lock()
        self._late: Deque[Result] = deque()
        self.closed = False
        """Nothing is written any more."""

    def forked(self) -> None:
        """In a process that was forked from the stub: it must not write, nor wait for a thread that it has no copy of."""
        self.closed = True
        self.lock = threading.Lock()

    def post(self, results: Sequence[Result], calls: Sequence[Tuple[Any, ...]] = ()) -> None:
        """Writes one record. Blocks while the ring is full.

        Raises:
            OutOfSharedMemory: it is too long for the ring, and there is no room for it elsewhere.
        """
        try:
            with self.lock:
                self.write(results, calls)
        finally:
            self.sweep()

    def post_late(self, result: Result) -> None:
        """Writes a result from a place where waiting for the lock could be waiting for oneself: the collection of garbage."""
        self._late.append(result)
        self.sweep()

    def write(self, results: Sequence[Result], calls: Sequence[Tuple[Any, ...]] = ()) -> None:
        """``post`` for who holds the lock."""
        if self.closed:
            return
        memory = self._memory
        releases: List[Any] = []
        while memory.dropped and len(releases) < _RELEASES_AT_ONCE:
            releases.append(memory.dropped.popleft())
        record = self._pack((NEWS, releases, results, calls))
        if len(record) > RECORD_BYTES:
            try:
                record = self._pack((INDIRECT, *memory.write(record), len(record)))
            except OutOfSharedMemory:
                memory.dropped.extend(releases)  # they are not lost with it
                raise
        up = self._up
        while not up.push(record):
            # Every slot is taken: the parent is behind. If it is gone, the control thread ends this process.
            up.ring()
            sleep(_FULL_SECONDS)
        up.ring()

    def write_results(self, results: Sequence[Result]) -> None:
        """``write``, for results that have to be told: one that finds no room, beyond the ring, is told to have found none."""
        try:
            self.write(results)
        except OutOfSharedMemory:
            for result in results:
                try:
                    self.write([result])
                except OutOfSharedMemory as error:
                    key, flags, nanoseconds, kept, blocks, *_ = result
                    self._memory.take_back(blocks)
                    self.write([(key, flags & ~EMPTY | FAILURE, nanoseconds, kept, (), (), (ErrorCode.INTERNAL, str(error)), "")])

    def sweep(self) -> None:
        """Writes what came while the lock was held. Call after letting go of it."""
        while self._late and self.lock.acquire(False):
            try:
                results = []
                while self._late:
                    results.append(self._late.popleft())
                self.write_results(results)
            finally:
                self.lock.release()
