"""A region of a client's shared memory, as a stub reads and writes it.

The client can truncate the file at any time, so every mapping of it is guarded (``bus_guard``), and what lies in pages that were lost
counts for nothing. Where nothing can be guarded, bytes are copied by ``os.preadv`` and ``os.pwritev``, which take three times as long
for 16 MiB.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Callable, List, Optional

import numpy as np

from ..shm.errors import OutOfSharedMemory
from .bus_guard import GuardedMapping, guarded


class Lost(Exception):
    """The file ends before the bytes that were to be read, or there is no memory for what was to be written."""


class Window:
    """``size`` bytes at ``offset`` of a file. The descriptor is taken over. In any thread."""

    __slots__ = ("_fd", "_offset", "_private", "_shared", "_skip", "size")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.size = size
        self._fd: Optional[int] = fd
        self._offset = offset
        self._skip = offset % mmap.PAGESIZE
        self._private: List[GuardedMapping] = []
        self._shared: Optional[GuardedMapping] = None

    def check(self, offset: int, nbytes: int) -> None:
        """Looks whether the file is long enough for these bytes.

        Raises:
            Lost: it is not, or the window is closed.
            ValueError: they do not lie within the window.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise ValueError(f"{nbytes} bytes at {offset} lie outside a window of {self.size} bytes")
        if self._fd is None or os.fstat(self._fd).st_size < self._offset + offset + nbytes:
            raise Lost

    def private(self, index: int) -> Optional[GuardedMapping]:
        """One of any number of copy-on-write mappings of the window, which begin at the page that it begins in (see ``place``); None where
        nothing can be guarded. ``check`` has been called.

        Raises:
            OutOfSharedMemory: this process has no room for it.
        """
        known = self._private[index] if index < len(self._private) else None
        mapping = self._map(mmap.MAP_PRIVATE) if known is None or known.useless else known
        if mapping is not None:
            self._private[index : index + 1] = [mapping]
            mapping.arm()
        return mapping

    def place(self, offset: int) -> int:
        """Where that offset of the window is in its mappings."""
        return self._skip + offset

    def read(self, offset: int, target: np.ndarray) -> None:
        """Fills a contiguous array of bytes with those at ``offset`` of the window.

        Raises:
            Lost: they are not there any more; what the target holds then is undefined.
            OutOfSharedMemory: this process has no room for the mapping.
            ValueError: they do not lie within the window.
        """
        self._copy(offset, target, into=False)

    def write(self, offset: int, source: np.ndarray) -> None:
        """Copies a contiguous array of bytes to ``offset`` of the window.

        Raises:
            Lost: their place is not there any more, or there is no memory for it.
            OutOfSharedMemory: this process has no room for the mapping.
            ValueError: it does not lie within the window.
        """
        self._copy(offset, source, into=True)

    def close(self) -> None:
        """Gives back the descriptor, and the mappings with their last views. Nothing can be read or written afterwards."""
        self._shared = None
        self._private = []
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _copy(self, offset: int, array: np.ndarray, into: bool) -> None:
        self.check(offset, array.nbytes)
        mapping = self._shared
        if mapping is None or mapping.useless:
            mapping = self._shared = self._map(mmap.MAP_SHARED)
        if mapping is None:
            self._transfer(os.pwritev if into else os.preadv, offset, array)
            return
        mapping.arm()
        here, there = mapping.address + self._skip + offset, array.__array_interface__["data"][0]
        if into:
            ctypes.memmove(here, there, array.nbytes)
        else:
            ctypes.memmove(there, here, array.nbytes)
        if mapping.lost:
            raise Lost

    def _map(self, flags: int) -> Optional[GuardedMapping]:
        assert self._fd is not None
        try:
            return guarded(self._fd, self._offset - self._skip, self._skip + self.size, flags)
        except OSError as error:
            raise OutOfSharedMemory(f"{self.size} bytes of a client's shared memory cannot be mapped: {error.strerror}") from None

    def _transfer(self, call: Callable[..., int], offset: int, array: np.ndarray) -> None:
        assert self._fd is not None
        left = memoryview(array)
        try:
            while left:
                done = call(self._fd, [left], self._offset + offset)
                if not done:
                    raise Lost
                offset, left = offset + done, left[done:]
        except OSError:
            raise Lost from None
