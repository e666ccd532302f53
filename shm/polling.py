"""How long to poll before sleeping.

Waking an idle core costs 30 to 60 microseconds on a virtual machine, whatever the primitive, so a side that expects its next
record soon looks for it for a while. It does so only as long as that pays: the wait it expects is the recent mean, and beyond
``limit`` it goes to sleep at once.
"""

from __future__ import annotations

import os
from time import perf_counter_ns

MICROSECOND = 1_000
TAKEN_NS = 1_000 * MICROSECOND
"""Whoever is away for so long after a yield shares the core with somebody who computes."""

_LEAST_REST_NS, _LONGEST_REST_NS = 16_000 * MICROSECOND, 1_024_000 * MICROSECOND


def yield_core() -> bool:
    """Lets whoever shares this core go first, which costs half a microsecond when nobody does; False if that took so long that somebody
    computes here. The scheduler takes a slice of a few ms from whoever yields to such a one, and wakes a sleeper sooner."""
    begun = perf_counter_ns()
    os.sched_yield()
    return perf_counter_ns() - begun < TAKEN_NS


class PollBudget:
    """Decides, from the waits seen so far, how many nanoseconds to poll. Pure: time is handed in.

    Where somebody computes on the core of whoever polls, each yield may cost a slice, and sleeping costs little, since no core has to be woken
    up. So a disturbance ends all polling for a while; for twice as long each time that it happens again before it was undisturbed for as
    long as it had rested.

    Args:
        limit: longest time worth polling, in nanoseconds; 0 never polls.
    """

    __slots__ = ("_limit", "_mean", "_rest", "_rests_until")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mean = limit // 2
        self._rest = 0
        self._rests_until = 0

    def nanoseconds(self, now: int) -> int:
        """How long to poll now: ``limit`` if the wait is expected to end before, or 0."""
        return self._limit if self._mean < self._limit and now >= self._rests_until else 0

    def waited(self, nanoseconds: int) -> None:
        """Learns from one wait; a long pause counts as twice the limit, so that three short ones undo any number of them."""
        self._mean += (min(nanoseconds, 2 * self._limit) - self._mean) // 4

    def disturbed(self, now: int) -> None:
        """``yield_core`` says that somebody computes on this core."""
        soon = now - self._rests_until < self._rest
        self._rest = min(2 * self._rest, _LONGEST_REST_NS) if soon else _LEAST_REST_NS
        self._rests_until = now + self._rest


def poll_limit(microseconds: int) -> int:
    """``microseconds`` in nanoseconds, or 0 where polling would take the only core from the one who is to answer."""
    return microseconds * MICROSECOND if len(os.sched_getaffinity(0)) > 1 else 0
