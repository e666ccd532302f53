"""How glibc's malloc keeps large blocks."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""From <malloc.h>."""

_MMAP_BYTES = 32 << 20
"""The highest that glibc takes."""

_KEPT_BYTES = 128 << 20


def keep_large_blocks() -> None:
    """Lets what is freed be used again, up to 128 MiB of it, instead of going back to the system at once.

    A new page has to be zeroed and mapped, which takes several times as long as to copy it; gRPC makes five buffers of the size of a
    message on its way in and out, so that 16 MiB took 55 ms instead of 30. Call it before there are threads, which would otherwise have
    heaps of their own, each with its own leftovers. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _MMAP_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES)):
            mallopt(parameter, value)
