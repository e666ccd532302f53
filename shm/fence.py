"""A full memory fence, made of what Python has.

Store-to-load reordering is visible from pure Python on x86 (about one lost wake-up in a thousand races of the doorbell's
handshake), so both sides of that handshake pass through here.
"""

from __future__ import annotations

import os
import platform
import threading

WEAKLY_ORDERED = platform.machine().lower() not in ("x86_64", "amd64", "i686")
"""Whether plain loads and stores need fences of their own too (on x86 only store-to-load reorders)."""

_lock = threading.Lock()


def _locked_instruction() -> None:
    # Taking any lock is a locked instruction, which on x86 is a full fence: 60 ns, the cheapest there is from Python.
    with _lock:
        pass


def _yield() -> None:
    # Entering the kernel's scheduler is a full fence on every architecture.
    os.sched_yield()


fence = _yield if WEAKLY_ORDERED else _locked_instruction
