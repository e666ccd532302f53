"""Calls back at a time, to the microsecond: an event loop's own clock counts milliseconds."""

from __future__ import annotations

import asyncio
import os
import threading
from time import perf_counter_ns
from typing import Callable

_COARSE_NS = 1_500_000
"""What the loop's clock may be off by; that much before the time it is looked at in each turn of the loop."""


class Alarm:
    """One for the loop that is running. The earliest time that was set counts.

    Args:
        ring: called in the loop; the alarm is off by then.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._at = 0

    def set(self, due: int) -> None:
        """Rings at that time (``perf_counter_ns``), if not before. In any thread, but in one at a time."""
        if not self._at or due < self._at:
            self._at = due
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._wait, due)
            else:
                self._loop.call_soon_threadsafe(self._wait, due)

    def _wait(self, due: int) -> None:
        if due != self._at:
            return  # another one comes before
        left = due - perf_counter_ns()
        if left > _COARSE_NS:
            self._loop.call_later((left - _COARSE_NS) / 1e9, self._wait, due)
        elif left > 0:
            os.sched_yield()
            self._loop.call_soon(self._wait, due)
        else:
            self._at = 0
            self._ring()
