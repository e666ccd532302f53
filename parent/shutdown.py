"""How the time for an orderly end is divided: each step has a part of what is left, so that none takes the time of those that follow.

Front ends finish the clients' requests, in half of the time at most. Then models finish what they ask of each other, in half of the rest;
``finalize`` runs until there is only the grace left that SIGTERM gives; and at the end comes SIGKILL.
"""

from __future__ import annotations

from typing import NamedTuple

_CLIENTS_SHARE = 0.5
_REQUESTS_SHARE = 0.5
_GRACE_SHARE = 0.1
_MOST_GRACE_SECONDS = 2.0

KILL_SECONDS = 5.0
"""How long the system may take to end a process that got SIGKILL."""

OVERDUE_SECONDS = 15.0
"""How long after its time an end that hangs is given up, by ending the process as it is."""


def clients_seconds(seconds: float) -> float:
    """How much of the time for the server's end front ends have to finish requests."""
    return seconds * _CLIENTS_SHARE


class ModelBudget(NamedTuple):
    """When a step of a model's end is over, in seconds after its beginning. Then follows SIGKILL."""

    requests: float
    """What it was asked is finished."""
    finalize: float
    """``finalize`` has returned, and the process has ended by itself."""
    terminate: float
    """It has ended by SIGTERM."""

    @classmethod
    def of(cls, seconds: float) -> ModelBudget:
        """Of a model that has ``seconds`` to end."""
        return cls(seconds * _REQUESTS_SHARE, seconds - min(seconds * _GRACE_SHARE, _MOST_GRACE_SECONDS), seconds)
