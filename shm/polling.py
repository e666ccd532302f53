"""How long to poll before sleeping.

Waking an idle core costs 30 to 60 microseconds on a virtual machine, whatever the primitive, so a side that expects its next
record soon looks for it for a while. It does so only as long as that pays: the wait it expects is the recent mean, and beyond
``limit`` it goes to sleep at once.
"""

from __future__ import annotations

import os

MICROSECOND = 1_000


class PollBudget:
    """Decides, from the waits seen so far, how many nanoseconds to poll. Pure: time is handed in.

    Args:
        limit: longest time worth polling, in nanoseconds; 0 never polls.
    """

    __slots__ = ("_limit", "_mean")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mean = limit // 2

    def nanoseconds(self) -> int:
        """How long to poll now: ``limit`` if the wait is expected to end before, or 0."""
        return self._limit if self._mean < self._limit else 0

    def waited(self, nanoseconds: int) -> None:
        """Learns from one wait; a long pause counts as twice the limit, so that three short ones undo any number of them."""
        self._mean += (min(nanoseconds, 2 * self._limit) - self._mean) // 4


def poll_limit(microseconds: int) -> int:
    """``microseconds`` in nanoseconds, or 0 where polling would take the only core from the one who is to answer."""
    return microseconds * MICROSECOND if len(os.sched_getaffinity(0)) > 1 else 0
