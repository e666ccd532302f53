"""Mappings of files that another process may truncate: zeros appear in place of the pages that are gone, and a note of it is taken.

Touching a mapped page beyond the end of its file is a SIGBUS, which ends a process, and neither a seal nor a lease keeps a file in
/dev/shm from being truncated. The handler here puts zeros from that page on to the end of the mapping, and notes in a table that it
did; so whoever touched the page goes on, and what comes of it is not to be used. A SIGBUS with another cause has the effect that it
always had.

The handler runs in any thread, in the middle of any code of the model's or its libraries': it must take neither locks nor memory, which
rules out Python. It is the machine code below, for x86-64 Linux. Elsewhere, and where the system permits no executable memory, nothing
can be guarded.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import sys
import weakref
from functools import cache
from typing import Optional

_ASSEMBLY = """
    4c 8b 46 10                 handler: mov r8, [rsi + 16]                 the address, in siginfo_t
    4c 8d 0d f5 0f 00 00                 lea r9, [table]                    after this page
    b9 00 04 00 00                       mov ecx, 1024                      _ENTRIES
    4d 3b 01                    each:    cmp r8, [r9]
    72 09                                jb  next
    49 8b 71 08                          mov rsi, [r9 + 8]
    49 39 f0                             cmp r8, rsi
    72 49                                jb  found
    49 83 c1 20                 next:    add r9, 32
    ff c9                                dec ecx
    75 ea                                jnz each
    bf 07 00 00 00              other:   mov edi, SIGBUS                    rt_sigaction(SIGBUS, former, NULL, 8)
    48 8d 35 ce 8f 00 00                 lea rsi, [former]                  after the table
    31 d2                                xor edx, edx
    41 ba 08 00 00 00                    mov r10d, 8
    b8 0d 00 00 00                       mov eax, 13
    0f 05                                syscall
    48 c7 06 00 00 00 00                 mov qword ptr [rsi], 0             next time the default: the former may come back here
    b8 27 00 00 00                       mov eax, 39                        tgkill(getpid(), gettid(), SIGBUS)
    0f 05                                syscall
    89 c7                                mov edi, eax
    b8 ba 00 00 00                       mov eax, 186
    0f 05                                syscall
    89 c6                                mov esi, eax
    ba 07 00 00 00                       mov edx, SIGBUS
    b8 ea 00 00 00                       mov eax, 234
    0f 05                                syscall
    c3                                   ret
    49 c7 41 10 01 00 00 00     found:   mov qword ptr [r9 + 16], 1
    4c 89 c7                             mov rdi, r8                        mmap(page, end - page, read and write,
    48 81 e7 00 f0 ff ff                 and rdi, -4096                          private, anonymous, fixed, no reserve, -1, 0)
    48 29 fe                             sub rsi, rdi
    ba 03 00 00 00                       mov edx, 3
    41 ba 32 40 00 00                    mov r10d, 0x4032
    49 c7 c0 ff ff ff ff                 mov r8, -1
    45 31 c9                             xor r9d, r9d
    b8 09 00 00 00                       mov eax, 9
    0f 05                                syscall
    48 3d 01 f0 ff ff                    cmp rax, -4095
    73 86                                jae other
    c3                                   ret
"""
_MNEMONICS = 32
"""The column they begin in."""

_PAGE = 4096
_ENTRIES = 1024
_WORDS = 4
"""Of 64 bits in an entry: first address, end, whether pages were lost, nothing."""
_END, _LOST = 1, 2
_TABLE_BYTES = _ENTRIES * _WORDS * 8

_SA_SIGINFO, _SA_ONSTACK = 4, 0x08000000
_SYS_RT_SIGACTION, _KERNEL_SET_BYTES = 13, 8
_MAP_FIXED = 0x10
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


class _SigAction(ctypes.Structure):
    """``struct sigaction`` of the C library, which is the same for glibc and musl."""

    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_byte * 128), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]


class _Handler:
    """The code, and the table of what is guarded. In any thread, and within a garbage collection.

    Raises:
        OSError: there is no executable memory to be had.
    """

    def __init__(self) -> None:
        # PyDLL: these calls are too short to let go of the interpreter's lock for.
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        # Private: a process that the model forks has a table of its own.
        self._memory = mmap.mmap(-1, _PAGE + _TABLE_BYTES + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        code = bytes.fromhex("".join([line[:_MNEMONICS] for line in _ASSEMBLY.splitlines()]))
        self._memory[: len(code)] = code
        address = address_of(self._memory)
        if self._libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), mmap.PROT_READ | mmap.PROT_EXEC):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._table = memoryview(self._memory)[_PAGE : _PAGE + _TABLE_BYTES].cast("Q")
        self._action = _SigAction(handler=address, flags=_SA_SIGINFO | _SA_ONSTACK)
        self._former = address + _PAGE + _TABLE_BYTES
        self._free = list(range(0, _ENTRIES * _WORDS, _WORDS))

    def install(self) -> None:
        """Makes it the handler, unless it is: the model may have set another, which is the former one then."""
        present = _SigAction()
        self._libc.sigaction(signal.SIGBUS, None, ctypes.byref(present))
        if present.handler != self._action.handler:
            self._libc.syscall(_SYS_RT_SIGACTION, signal.SIGBUS, None, ctypes.c_void_p(self._former), _KERNEL_SET_BYTES)
            self._libc.sigaction(signal.SIGBUS, ctypes.byref(self._action), None)

    def add(self, start: int, end: int) -> Optional[int]:
        """Guards these addresses. Returns the place of the entry, None if there are too many."""
        try:
            entry = self._free.pop()
        except IndexError:
            return None
        self._table[entry + _LOST] = 0
        self._table[entry] = start
        self._table[entry + _END] = end  # last: with an end of 0 it is none
        return entry

    def remove(self, entry: int) -> None:
        self._table[entry + _END] = 0
        self._free.append(entry)

    def overlay(self, start: int, nbytes: int, flags: int, fd: int, offset: int) -> None:
        """Maps a file over these pages."""
        self._map(start, nbytes, flags | _MAP_FIXED, fd, offset)

    def replace(self, start: int, nbytes: int) -> None:
        """Puts copies in place of these pages, in one step as far as other threads can see."""
        copy = self._map(None, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        ctypes.memmove(copy, start, nbytes)
        size = ctypes.c_size_t(nbytes)
        self._libc.mremap(ctypes.c_void_p(copy), size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, ctypes.c_void_p(start))

    def lost(self, entry: int) -> bool:
        return self._table[entry + _LOST] != 0

    def _map(self, start: Optional[int], nbytes: int, flags: int, fd: int, offset: int) -> int:
        address = self._libc.mmap(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), _READ_WRITE, flags, fd, ctypes.c_long(offset))
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(address)


class GuardedMapping:
    """A mapping whose pages may be lost; see ``guarded``."""

    __slots__ = ("_entry", "_frozen", "_handler", "address", "memory")

    def __init__(self, handler: _Handler, memory: mmap.mmap, entry: int) -> None:
        self._handler = handler
        self._entry = entry
        self._frozen = False
        self.memory = memory
        self.address = address_of(memory)

    @property
    def lost(self) -> bool:
        """Whether pages were lost, in whose place there are zeros from then on."""
        return self._handler.lost(self._entry)

    @property
    def useless(self) -> bool:
        """Whether some of it does not show the file any more."""
        return self._frozen or self.lost

    def arm(self) -> None:
        """Call before it is touched: the model may have set another handler meanwhile."""
        self._handler.install()

    def freeze(self, start: int, end: int) -> None:
        """Puts copies in place of the pages of these addresses: whatever becomes of the file, they stay as they are.

        Raises:
            OSError: there is no memory for them.
        """
        start -= start % _PAGE
        end += -end % _PAGE
        self._frozen = True
        self._handler.replace(start, end - start)


def guarded(fd: int, offset: int, nbytes: int, flags: int) -> Optional[GuardedMapping]:
    """Maps ``nbytes`` bytes at ``offset`` of a file, to read and to write; None where nothing can be guarded. It is guarded for as long as
    anything views it.

    Args:
        offset: a multiple of the page size.
        flags: MAP_SHARED or MAP_PRIVATE.

    Raises:
        OSError: this process has no room for it.
    """
    handler = _handler()
    if handler is None:
        return None
    # ``mmap.mmap`` of the file itself would refuse one that is shorter by now, and keep a descriptor of its own.
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(memory)
    entry = handler.add(start, start + nbytes)
    if entry is None:
        return None
    weakref.finalize(memory, handler.remove, entry).atexit = False
    handler.overlay(start, nbytes, flags, fd, offset)
    return GuardedMapping(handler, memory, entry)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@cache
def _handler() -> Optional[_Handler]:
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32 or mmap.PAGESIZE != _PAGE:
        return None
    try:
        return _Handler()
    except OSError:
        return None
