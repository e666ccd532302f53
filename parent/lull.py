"""The time between an answer and the next request, in which the server has nothing to do.

A client that sends one request after the other sends the next as soon as it has its answer: sooner than a loop that went to sleep would be
awake again. So the server's loop goes on turning for a while, as long as that pays.
"""

from __future__ import annotations

from ..shm.polling import PollBudget, poll_limit

_LULL_POLL_US = 100


class Lull:
    """Of the rings that the server's loop looks at. Pure: times, in nanoseconds, are handed in."""

    __slots__ = ("_began", "_looking", "budget")

    def __init__(self) -> None:
        self.budget = PollBudget(poll_limit(_LULL_POLL_US))
        self._looking = 0
        self._began = 0

    def ends(self, now: int) -> None:
        """A request has come."""
        if self._began:
            self.budget.waited(now - self._began)
            self._began = 0

    def looks(self) -> None:
        """The loop begins to look at a ring."""
        self._looking += 1

    def looked(self, now: int) -> int:
        """It is done with one: until when to go on turning, 0 if it looks at others or that would not pay."""
        self._looking -= 1
        if self._looking:
            return 0
        self._began = now
        pays = self.budget.nanoseconds(now)
        return now + pays if pays else 0

    def lasts(self, now: int, deadline: int) -> bool:
        """Whether to go on turning."""
        return self._began != 0 and now < deadline
