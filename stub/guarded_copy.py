"""Copies out of and into memory that another process may take away while they run.

A client's shared memory is a file that the client can truncate at any time, and touching a mapped page beyond the end of its file is a
SIGBUS, which ends a process. Looking at the size first, as is done here, leaves a race, and neither a seal nor a lease keeps a file in
/dev/shm from being truncated. So a model never sees such a mapping: its tensors are copied, and for the time of a copy a SIGBUS has a
handler. It puts zeros in place of the pages that are gone, so that the copy can go on, and takes note, so that the result is not used.

The handler is Python, called through ctypes in the middle of the machine code that touched the page. That is allowed here where it is
not for signals in general: the signal is synchronous, as a call is, and the only code of this process that it can interrupt is
``memmove``, which holds no lock, nor Python's own one (ctypes lets go of it). A SIGBUS that has another cause has the effect that it
always had.

``os.preadv`` and ``os.pwritev`` cannot fault at all, but take three times as long: more than 2 ms for 16 MiB, and this 0.75 ms.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
from typing import Any, Optional

from ..shm.errors import OutOfSharedMemory

_SA_SIGINFO = 4
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value
_SI_ADDR = 16  # of siginfo_t, on every 64-bit Linux


class Lost(Exception):
    """The file ends before the bytes that were to be copied, or there is no memory for what was to be written."""


class _SigAction(ctypes.Structure):
    """``struct sigaction`` of the C library, which is the same for glibc and musl and for x86-64 and AArch64."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def _function(name: str, result: Any, *arguments: Any) -> Any:
    # PyDLL: without letting go of the interpreter's lock, which the handler could not count on getting back in time.
    function = getattr(ctypes.PyDLL(None, use_errno=True), name)
    function.restype, function.argtypes = result, arguments
    return function


_pointer, _size, _int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_mmap = _function("mmap", _pointer, _pointer, _size, _int, _int, _int, ctypes.c_long)
_munmap = _function("munmap", _int, _pointer, _size)
_sigaction = _function("sigaction", _int, _int, _pointer, _pointer)

_lock = threading.Lock()
"""One copy at a time: the handler is the process's."""

_at_work: Optional[Window] = None
"""What is being copied from or to, under the lock."""

_former = _SigAction()
"""What SIGBUS did before."""


class Window:
    """``size`` bytes at ``offset`` of a file, mapped when they are first copied. The descriptor is taken over. In any thread."""

    __slots__ = ("_address", "_fd", "_lost", "_mapped", "_skip", "_start", "size")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.size = size
        self._fd: Optional[int] = fd
        self._skip = offset % mmap.PAGESIZE
        self._start = offset - self._skip
        self._mapped = self._skip + size
        self._address = 0
        self._lost = False

    def read(self, offset: int, target: int, nbytes: int) -> None:
        """Copies ``nbytes`` bytes at ``offset`` of the window to the address ``target``.

        Raises:
            Lost: they are not there any more; what the target holds then is undefined.
            OutOfSharedMemory: this process has no room for the mapping.
            ValueError: they do not lie within the window.
        """
        self._copy(offset, nbytes, target, into=False)

    def write(self, offset: int, source: int, nbytes: int) -> None:
        """Copies ``nbytes`` bytes at the address ``source`` to ``offset`` of the window.

        Raises:
            Lost: their place is not there any more, or there is no memory for it.
            OutOfSharedMemory: this process has no room for the mapping.
            ValueError: it does not lie within the window.
        """
        self._copy(offset, nbytes, source, into=True)

    def close(self) -> None:
        """Gives back the mapping and the descriptor. Nothing can be copied afterwards."""
        with _lock:
            self._unmap()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def __del__(self) -> None:
        # Nobody copies, as nobody has it; the lock could be held by this very thread.
        self._unmap()
        if self._fd is not None:
            os.close(self._fd)

    def _copy(self, offset: int, nbytes: int, other: int, into: bool) -> None:
        global _at_work
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise ValueError(f"{nbytes} bytes at {offset} lie outside a window of {self.size} bytes")
        with _lock:
            if self._fd is None or _size_of(self._fd) < self._start + self._skip + offset + nbytes:
                raise Lost
            here = self._map(self._fd) + self._skip + offset
            self._lost = False
            _at_work = self
            _sigaction(signal.SIGBUS, ctypes.byref(_guard), ctypes.byref(_former))
            try:
                ctypes.memmove(*((here, other) if into else (other, here)), nbytes)
            finally:
                _sigaction(signal.SIGBUS, ctypes.byref(_former), None)
                _at_work = None
            if self._lost:
                self._unmap()  # there may be zeros where the file has something again
                raise Lost

    def _map(self, fd: int) -> int:
        if not self._address:
            address = _mmap(None, self._mapped, _READ_WRITE, mmap.MAP_SHARED, fd, self._start)
            if address == _FAILED:
                why = os.strerror(ctypes.get_errno())
                raise OutOfSharedMemory(f"{self._mapped} bytes of a client's shared memory cannot be mapped: {why}")
            self._address = address
        return self._address

    def _unmap(self) -> None:
        if self._address:
            _munmap(self._address, self._mapped)
            self._address = 0

    def _patch(self, address: int) -> bool:
        """Puts zeros from the page of ``address`` to the end; whether it lies in the mapping."""
        end = self._address + self._mapped
        if not self._address <= address < end:
            return False
        page = address - address % mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        self._lost = True
        return bool(_mmap(page, end - page, _READ_WRITE, flags, -1, 0) == page)


def _size_of(fd: int) -> int:
    return os.fstat(fd).st_size


def _on_sigbus(_signum: int, info: int, _context: int) -> None:
    address = ctypes.c_size_t.from_address(info + _SI_ADDR).value
    if _at_work is None or not _at_work._patch(address):
        # Not of this: it happens again when this returns, or now if somebody sent it, and then with its usual effect.
        _sigaction(signal.SIGBUS, ctypes.byref(_former), None)
        signal.raise_signal(signal.SIGBUS)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_sigbus)
_guard = _SigAction(handler=ctypes.cast(_handler, ctypes.c_void_p).value, flags=_SA_SIGINFO)
