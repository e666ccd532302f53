"""How long to poll before sleeping.

Waking an idle core costs 30 to 60 microseconds on a virtual machine, whatever the primitive, so a side that expects its next
record soon looks for it for a while. It does so only as long as that pays: the wait it expects is the recent mean, and beyond
``limit`` it goes to sleep at once.
"""

from __future__ import annotations

import os
from time import perf_counter_ns

MICROSECOND = 1_000
TAKEN_NS = 300 * MICROSECOND
"""Whoever is away for so long after a yield shares the core with somebody who computes."""

_LEAST_REST, _LONGEST_REST = 16, 1024


def yield_core() -> bool:
    """Lets whoever shares this core go first, which costs half a microsecond when nobody does; False if that took so long that somebody
    computes here. The scheduler takes a slice of 3 ms from whoever yields to such a one, and wakes a sleeper sooner."""
    begun = perf_counter_ns()
    os.sched_yield()
    return perf_counter_ns() - begun < TAKEN_NS


class Deterrent:
    """Keeps from doing again what has turned out badly: the next times, twice as many each time it happens before it is forgotten, which takes
    as many times without. Pure."""

    __slots__ = ("_penalty", "_rest")

    def __init__(self) -> None:
        self._rest = 0
        self._penalty = 0

    def holds(self) -> bool:
        """Whether it should not be done now."""
        return self._rest > 0

    def passed(self) -> None:
        """One time has passed, with it or without."""
        if self._rest:
            self._rest -= 1
        elif self._penalty:
            self._penalty -= 1

    def hurt(self) -> None:
        """It was done, and turned out badly."""
        self._rest = self._penalty = min(max(2 * self._penalty, _LEAST_REST), _LONGEST_REST)


class PollBudget:
    """Decides, from the waits seen so far, how many nanoseconds to poll. Pure: time is handed in.

    Args:
        limit: longest time worth polling, in nanoseconds; 0 never polls.
    """

    __slots__ = ("_limit", "_mean", "disturbances")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mean = limit // 2
        self.disturbances = Deterrent()
        """Is told when ``yield_core`` says that somebody computes on this core: then the next waits are slept through."""

    def nanoseconds(self) -> int:
        """How long to poll now: ``limit`` if the wait is expected to end before, or 0."""
        return self._limit if self._mean < self._limit and not self.disturbances.holds() else 0

    def waited(self, nanoseconds: int) -> None:
        """Learns from one wait; a long pause counts as twice the limit, so that three short ones undo any number of them."""
        self._mean += (min(nanoseconds, 2 * self._limit) - self._mean) // 4
        self.disturbances.passed()


def poll_limit(microseconds: int) -> int:
    """``microseconds`` in nanoseconds, or 0 where polling would take the only core from the one who is to answer."""
    return microseconds * MICROSECOND if len(os.sched_getaffinity(0)) > 1 else 0
