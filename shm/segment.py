"""Segments: pieces of shared memory without a name.

A segment is created by the parent as a file without a name, and reaches a stub as a file descriptor. So no name can be guessed or left
behind, whoever is killed when. Its size is sealed before anyone else has it (memfd_create(2), fcntl(2)): nobody can truncate it, so that
touching it is never a SIGBUS, whatever a stub does with its descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
from contextlib import suppress
from typing import List, Optional

from .errors import OutOfSharedMemory, ProtocolError
from .free_memory import shortage

PAGE = mmap.PAGESIZE
_MADV_REMOVE = 9
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_HUGE_PAGE = 2 << 20
_STEP = 4 << 20

# Of memfd_create(2) and fcntl(2); an interpreter that was built for an old C library has no names for them.
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL = 1, 2, 8
_F_ADD_SEALS = 1033
_SIZE_IS_SEALED = 1 | 2 | 4  # F_SEAL_SEAL: no more seals; F_SEAL_SHRINK; F_SEAL_GROW
_NOT_HAD = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL)

EAGER_BYTES = 16 << 20
"""Segments up to this size are reserved and mapped when they are made, whoever they are for."""


def whole_pages(nbytes: int) -> int:
    """``nbytes`` rounded up to the size of a segment."""
    return -(-nbytes // PAGE) * PAGE


class Segment:
    """Mapped shared memory: ``id`` (unique within a parent), ``size`` in bytes, ``memory`` (the mapping), ``fd``.

    The first ``reserved`` bytes have memory behind them. The mapping lives as long as anything that views it; ``close`` gives back
    the descriptor alone.
    """

    __slots__ = ("_private", "fd", "id", "memory", "reserved", "size")

    def __init__(self, segment_id: int, fd: int, size: int) -> None:
        self.id = segment_id
        self.fd: Optional[int] = fd
        self.size = size
        self.reserved = 0
        self._private: List[mmap.mmap] = []
        try:
            self.memory = mmap.mmap(fd, size)
        except OSError as error:
            self.close()
            raise OutOfSharedMemory(f"{size} bytes of shared memory cannot be mapped: {_reason(error)}") from error

    @classmethod
    def create(cls, segment_id: int, size: int, as_it_fills: bool = False) -> Segment:
        """Makes a segment of at least ``size`` bytes, every page of it reserved and mapped in this process.

        Args:
            as_it_fills: if it is large, nothing is reserved yet, and who writes to it calls ``reserve`` before: a client that
                announces gigabytes and sends none of them costs nothing, and the pages of one that does come bit by bit.

        Raises:
            OutOfSharedMemory: there is no memory for it, no descriptor, or in this process no room for the mapping.
        """
        size = whole_pages(size)
        _check_available(size)
        as_it_fills = as_it_fills and size > EAGER_BYTES
        try:
            fd = _sealed(size, reserve=not as_it_fills)
        except OSError as error:
            raise OutOfSharedMemory(f"{size} bytes of shared memory cannot be had: {_reason(error)}") from error
        segment = cls(segment_id, fd, size)
        if not as_it_fills:
            segment.reserved = size
            segment._map_pages(0, size)
        return segment

    @classmethod
    def attach(cls, segment_id: int, fd: int, size: int, map_pages: bool = True) -> Segment:
        """Maps a segment that the parent made; takes the descriptor over, which stays open until ``close``.

        Args:
            map_pages: whether every page of it is reserved, so that all of them can be mapped now.

        Raises:
            ProtocolError: the descriptor holds fewer bytes than announced (touching them would be a SIGBUS).
            OutOfSharedMemory: this process has no room for the mapping.
        """
        held = os.fstat(fd).st_size
        if not 0 < size <= held:
            os.close(fd)
            raise ProtocolError(f"segment {segment_id} is announced with {size} bytes but holds {held}")
        segment = cls(segment_id, fd, size)
        segment.reserved = size
        if map_pages:
            segment._map_pages(0, size)
        return segment

    @property
    def shareable(self) -> bool:
        """Whether its descriptor is still there to be sent to others."""
        return self.fd is not None

    def reserve(self, end: int) -> None:
        """Puts memory behind the first ``end`` bytes, and some beyond.

        Raises:
            OutOfSharedMemory: there is none.
        """
        start = self.reserved
        if end <= start or self.fd is None:
            return
        step = min(whole_pages(max(end - start, _STEP)), self.size - start)
        _check_available(step)
        try:
            os.posix_fallocate(self.fd, start, step)
        except OSError as error:
            raise OutOfSharedMemory(f"{step} bytes of shared memory cannot be had: {_reason(error)}") from error
        self._map_pages(start, step)
        self.reserved = start + step

    def private(self, index: int) -> mmap.mmap:
        """One of any number of further mappings, copy-on-write: what is written there is seen by nobody else. Pages that were not written
        to show what the others write. Each is made when it is first asked for.

        Raises:
            OutOfSharedMemory: this process has no room for it, or the descriptor is closed.
        """
        while len(self._private) <= index:
            if self.fd is None:
                raise OutOfSharedMemory(f"the descriptor of segment {self.id} is closed")
            try:
                self._private.append(mmap.mmap(self.fd, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
            except OSError as error:
                raise OutOfSharedMemory(f"{self.size} bytes of shared memory cannot be mapped: {error.strerror}") from error
        return self._private[index]

    def _map_pages(self, start: int, nbytes: int) -> None:
        """Takes the page faults now instead of in a request (2.8 us for each 4 KiB); a kernel before 5.14 cannot."""
        with suppress(OSError):
            if nbytes >= _HUGE_PAGE:
                self.memory.madvise(_MADV_HUGEPAGE, start, nbytes)
        with suppress(OSError):
            self.memory.madvise(_MADV_POPULATE_WRITE, start, nbytes)

    def discard(self) -> None:
        """Gives the memory back to the system at once, whoever still maps it, and the descriptor. What was in it is lost."""
        with suppress(OSError):
            self.memory.madvise(_MADV_REMOVE)
        self.close()

    def close(self) -> None:
        """Gives the descriptor back. The memory itself goes when its last mapping does."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __del__(self) -> None:
        self.close()


def _sealed(size: int, reserve: bool) -> int:
    """A file of that size without a name, whose size nobody can change any more."""
    fd = _anonymous_file()
    if fd is None:
        # In a sandbox that does without memfd_create, size cannot be sealed, and /dev/shm has to have room.
        try:
            return _sized(_unlinked_shm(), size, reserve=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = "/dev/shm is full: enlarge it (docker run --shm-size=1g), or permit the system call memfd_create, which does without it"
            raise OSError(errno.ENOSPC, text) from error
    fd = _sized(fd, size, reserve)
    try:
        fcntl.fcntl(fd, _F_ADD_SEALS, _SIZE_IS_SEALED)
    except OSError:
        os.close(fd)
        raise
    return fd


def _anonymous_file() -> Optional[int]:
    """None where there is no such thing."""
    create = getattr(os, "memfd_create", None)
    if create is None:
        return None
    for more in (_MFD_NOEXEC_SEAL, 0):  # before Linux 6.3 there was no such flag
        try:
            return int(create("stublet", _MFD_CLOEXEC | _MFD_ALLOW_SEALING | more))
        except OSError as error:
            if error.errno not in _NOT_HAD:
                raise
    return None


def _unlinked_shm() -> int:
    # Imported here because a stub's interpreter need not have it: only the parent creates segments.
    import posix_ipc

    try:
        shm = posix_ipc.SharedMemory("/stublet-" + secrets.token_hex(16), posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.Error as error:  # no kin of OSError: /dev/shm is missing (ENOENT), or is not ours to write to (EACCES)
        raise OSError(errno.EACCES, f"/dev/shm cannot be used: {error}") from error
    shm.unlink()
    return int(shm.fd)


def _sized(fd: int, size: int, reserve: bool) -> int:
    """Gives a new file its size; reserves the pages, so that a lack of memory is an error here and not the end of the process at the first
    store."""
    try:
        if reserve:
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_available(nbytes: int) -> None:
    short = shortage(nbytes)
    if short is not None:
        whose, available = short
        raise OutOfSharedMemory(f"{nbytes} bytes of shared memory are needed, but {whose} has {available} bytes available")


def _reason(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: every segment takes two descriptors, so raise the limit of open files (ulimit -n)"
    return str(error.strerror)


class SegmentTable(dict):
    """Segments by id, and the one place where a location that the other side named is checked."""

    def locate(self, segment_id: int, offset: int, nbytes: int) -> Segment:
        """The segment that holds ``nbytes`` bytes at ``offset``. That they are integers, the decoder of the message has seen to.

        Raises:
            ProtocolError: no such segment, or the bytes do not lie within it.
        """
        segment: Optional[Segment] = self.get(segment_id)
        if segment is None:
            raise ProtocolError(f"segment {segment_id} is not known")
        if offset < 0 or nbytes < 0 or offset + nbytes > segment.size:
            raise ProtocolError(f"{nbytes} bytes at {offset} lie outside segment {segment_id} of {segment.size} bytes")
        return segment
