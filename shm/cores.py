"""On which core a thread runs, so that a thread that only looks around keeps out of the way of one that works."""

from __future__ import annotations

import ctypes
import os

UNKNOWN = -1


def _unknown() -> int:
    return UNKNOWN


# A PyDLL keeps the interpreter's lock, without which this would cost more than the rest of a turn of a polling loop: so it is 60 ns.
current_core = getattr(ctypes.PyDLL(None), "sched_getcpu", _unknown)
"""The number of the core that the calling thread runs on, or less than zero."""


def step_aside(core: int) -> bool:
    """Moves the calling thread off ``core``, to which it may return: it may run wherever it could before. False if there is no other."""
    allowed = os.sched_getaffinity(0)
    others = allowed - {core}
    if not others:
        return False
    try:
        os.sched_setaffinity(0, others)
        os.sched_setaffinity(0, allowed)
    except OSError:
        return False  # the system does not permit it, or has taken cores away meanwhile
    return True
