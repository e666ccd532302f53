"""When an instance that has died is started again. Pure: it is told what happens, and at what time in seconds of any clock, and says what is to
be done.

The first restart is immediate. When the one that was started dies soon, or does not load, the next waits, and each one after that twice as
long, with jitter, so that the instances of a server do not all come back at the same moment. Who serves for a while starts afresh. More
deaths within a window than the budget has, and no other restart follows.
"""

from __future__ import annotations

import random
from collections import deque
from enum import Enum
from typing import Callable, Deque, NamedTuple, Optional

FIRST_DELAY_SECONDS = 0.25
"""Before the second restart; half of it at least, as of every delay, the rest is up to chance."""

MOST_SECONDS = 30.0
"""No delay is longer."""

STEADY_SECONDS = 10.0
"""Who has served for so long is as good as new: the next restart is immediate again."""

SOON_SECONDS = 1.0
"""Requests wait for a restart that is due so soon; for others they are not kept."""


class RestartPolicy(NamedTuple):
    """So many restarts of an instance, at most, in any ``window_seconds``; with 0 none at all."""

    limit: int = 10
    window_seconds: float = 300.0


class Phase(Enum):
    """``SERVING``: it does. ``WAITING``: the restart is due at a time. ``LOADING``: it is under way. ``GIVEN_UP``: there will be none."""

    SERVING = "serving"
    WAITING = "waiting"
    LOADING = "loading"
    GIVEN_UP = "given up"


class Restarts:
    """The restarts of one place for an instance: of one after the other that is started there. It begins with one that serves.

    ``count``: how many restarts there have been. ``due``: when the next one is, while that is waited for. ``hopeful``: the restart that is
    waited for, or under way, is worth waiting for.

    Args:
        chance: a number from 0 up to, but not, 1.
    """

    def __init__(self, policy: RestartPolicy, now: float, chance: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._chance = chance
        self._restarts: Deque[float] = deque()
        self._since: Optional[float] = now
        self._level = -1
        self.phase = Phase.SERVING
        self.count = 0
        self.due = 0.0
        self.hopeful = False

    @property
    def recent(self) -> int:
        """How many restarts count against the budget."""
        return len(self._restarts)

    def died(self, now: float) -> Optional[float]:
        """It ended, or did not load. In how many seconds to start another; None for never."""
        failed_to_load = self.phase is Phase.LOADING
        while self._restarts and self._restarts[0] <= now - self._policy.window_seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self._policy.limit:
            self.phase, self.hopeful = Phase.GIVEN_UP, False
            return None
        steady = not failed_to_load and self._since is not None and now - self._since >= STEADY_SECONDS
        self._level = 0 if steady else self._level + 1
        delay = self._delay()
        self._restarts.append(now)
        self.phase, self.due = Phase.WAITING, now + delay
        self.hopeful = delay <= SOON_SECONDS and not failed_to_load
        return delay

    def begun(self) -> None:
        """The restart is under way."""
        self.phase = Phase.LOADING
        self.count += 1

    def failed(self) -> None:
        """It has not loaded, and will end."""
        self.hopeful = False

    def served(self, now: float) -> None:
        """It has loaded, and serves."""
        self.phase, self._since, self.hopeful = Phase.SERVING, now, False

    def _delay(self) -> float:
        if self._level == 0:
            return 0.0
        # No power of two that overflows: the most is reached long before.
        longest = min(FIRST_DELAY_SECONDS * 2.0 ** min(self._level - 1, 30), MOST_SECONDS)
        return longest * (0.5 + 0.5 * self._chance())
