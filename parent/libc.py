"""How glibc keeps and copies large blocks."""

from __future__ import annotations

import os
from typing import Dict

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""From <malloc.h>."""

_MMAP_BYTES = 32 << 20
"""The highest that glibc takes."""

_KEPT_BYTES = 128 << 20

_CACHE_SIZE = "/sys/devices/system/cpu/cpu0/cache/index3/size"
_STREAMING_COPY = "glibc.cpu.x86_non_temporal_threshold"
_RIGHT_BY_ITSELF = (2, 38)
_VERSION = "CS_GNU_LIBC_VERSION"


def keep_large_blocks() -> None:
    """Lets what is freed be used again, up to 128 MiB of it, instead of going back to the system at once.

    A new page has to be zeroed and mapped, which takes several times as long as to copy it; gRPC makes five buffers of the size of a
    message on its way in and out, so that 16 MiB took 55 ms instead of 30. Call it before there are threads, which would otherwise have
    heaps of their own, each with its own leftovers. Other C libraries are left alone.
    """
    import ctypes  # takes long, and who asks for ``copy_tuning`` is about to start anew

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _MMAP_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES)):
            mallopt(parameter, value)


def copy_tuning() -> Dict[str, str]:
    """Environment variables with which a process makes large copies go past the cache, from a quarter of it on. That is glibc's own rule since
    2.38; earlier ones, in a virtual machine, take the cache for that of the whole host, and 16 MiB then take a fifth longer. Empty where
    nothing is to be gained, or the environment has such a rule already."""
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    try:
        with open(_CACHE_SIZE) as file:
            size = file.read().strip()
        name, _, version = (os.confstr(_VERSION) or "").partition(" ")
        new = name != "glibc" or tuple(map(int, version.split("."))) >= _RIGHT_BY_ITSELF
    except (OSError, ValueError):
        return {}
    if new or _STREAMING_COPY in chosen or not size.endswith("K"):
        return {}
    tunable = f"{_STREAMING_COPY}={int(size[:-1]) * 1024 // 4}"
    return {"GLIBC_TUNABLES": f"{chosen}:{tunable}" if chosen else tunable}
