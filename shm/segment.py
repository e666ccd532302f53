"""Segments: pieces of shared memory without a name.

A segment is created by the parent, unlinked before anything is written to it, and reaches a stub as a file descriptor. So no
name can be guessed or left behind, whoever is killed when.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from contextlib import suppress
from typing import Optional

from .errors import OutOfSharedMemory, ProtocolError

PAGE = mmap.PAGESIZE
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_HUGE_PAGE = 2 << 20
_KEEP_FREE = 64 << 20


class Segment:
    """Mapped shared memory: ``id`` (unique within a parent), ``size`` in bytes, ``memory`` (the mapping), ``fd``.

    The mapping lives as long as anything that views it; ``close`` gives back the descriptor alone.
    """

    __slots__ = ("fd", "id", "memory", "size")

    def __init__(self, segment_id: int, fd: int, size: int) -> None:
        self.id = segment_id
        self.fd: Optional[int] = fd
        self.size = size
        try:
            self.memory = mmap.mmap(fd, size)
        except OSError as error:
            self.close()
            raise OutOfSharedMemory(f"{size} bytes of shared memory cannot be mapped: {error.strerror}") from error

    @classmethod
    def create(cls, segment_id: int, size: int) -> Segment:
        """Makes a segment of at least ``size`` bytes, every page of it reserved and mapped in this process.

        Raises:
            OutOfSharedMemory: neither /dev/shm nor an anonymous file has room for it, or this process none for the mapping.
        """
        size = -(-size // PAGE) * PAGE
        free = _memory_available()
        if free is not None and size + _KEEP_FREE > free:
            raise OutOfSharedMemory(f"{size} bytes of shared memory are needed, but the machine has {free} bytes available")
        try:
            fd = _reserved(_unlinked_shm(), size)
        except OSError:
            # /dev/shm is missing, full or small (64 MiB in a container by default): memfd has no such limit.
            try:
                fd = _reserved(os.memfd_create("stublet"), size)
            except OSError as error:
                raise OutOfSharedMemory(f"{size} bytes of shared memory cannot be had: {error.strerror}") from error
        segment = cls(segment_id, fd, size)
        segment._map_pages()
        return segment

    @classmethod
    def attach(cls, segment_id: int, fd: int, size: int) -> Segment:
        """Maps a segment that the parent made; takes the descriptor over.

        Raises:
            ProtocolError: the descriptor holds fewer bytes than announced (touching them would be a SIGBUS).
            OutOfSharedMemory: this process has no room for the mapping.
        """
        held = os.fstat(fd).st_size
        if not 0 < size <= held:
            os.close(fd)
            raise ProtocolError(f"segment {segment_id} is announced with {size} bytes but holds {held}")
        segment = cls(segment_id, fd, size)
        segment._map_pages()
        segment.close()
        return segment

    def _map_pages(self) -> None:
        """Takes the page faults now instead of in a request (2.8 us for each 4 KiB); a kernel before 5.14 cannot."""
        with suppress(OSError):
            if self.size >= _HUGE_PAGE:
                self.memory.madvise(_MADV_HUGEPAGE)
        with suppress(OSError):
            self.memory.madvise(_MADV_POPULATE_WRITE)

    def close(self) -> None:
        """Gives the descriptor back. The memory itself goes when its last mapping does."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def _unlinked_shm() -> int:
    # Imported here because a stub's interpreter need not have it: only the parent creates segments.
    import posix_ipc

    try:
        shm = posix_ipc.SharedMemory("/stublet-" + secrets.token_hex(16), posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.Error as error:  # no kin of OSError: /dev/shm is missing (ENOENT), or is not ours to write to (EACCES)
        raise OSError(f"/dev/shm cannot be used: {error}") from error
    shm.unlink()
    return int(shm.fd)


def _reserved(fd: int, size: int) -> int:
    """Reserves the pages, so that a full /dev/shm is an error here rather than a SIGBUS at the first store."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def _memory_available() -> Optional[int]:
    try:
        with open("/proc/meminfo", "rb") as meminfo:
            for line in meminfo:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    return None


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
