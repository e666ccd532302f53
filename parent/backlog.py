"""The responses to one request that wait for its client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Callable, Optional

from .errors import Unavailable
from .request import Outcome, Request, Response

if TYPE_CHECKING:
    from .servable import Servable

MOST_RESPONSES = 65_536
MOST_BYTES = 128 << 20
PATIENCE_SECONDS = 60.0


class Backlog:
    """Holds the model up while too many responses wait: its sender's ``send`` returns when there is room again. So what a fast model sends
    to a slow client stays bounded, without losing any of it. The bounds are wide, because a model that sends from ``execute`` keeps others
    waiting meanwhile, perhaps even those whose answers its client wants first.

    Too many are ``MOST_RESPONSES``, or ``MOST_BYTES`` in more than one; there is room again when half of them are gone. Methods may be
    called in any thread.

    Args:
        give_up: called in the server's loop when the client has taken nothing for ``PATIENCE_SECONDS``, with the error that the request
            then ends with; None lets it take its time.
    """

    def __init__(self, model: Servable, give_up: Optional[Callable[[Unavailable], None]] = None) -> None:
        self._model = model
        self._give_up = give_up
        self._lock = threading.Lock()
        self._request: Optional[Request] = None
        self._waiting = 0
        self._nbytes = 0
        self._taken = 0
        self._held = False

    def attach(self, request: Request) -> None:
        """Call before the request is submitted."""
        self._request = request

    def put(self, outcome: Optional[Outcome]) -> None:
        """An outcome has arrived, and waits."""
        with self._lock:
            self._waiting += 1
            self._nbytes += _size(outcome)
            many = self._waiting >= MOST_RESPONSES or (self._nbytes >= MOST_BYTES and self._waiting > 1)
            if self._held or not many:
                return
            self._hold(True)
            taken = self._taken
        if self._give_up is not None:
            self._model.call_later(PATIENCE_SECONDS, self._look, taken)

    def took(self, outcome: Optional[Outcome]) -> None:
        """An outcome is on its way to the client."""
        with self._lock:
            self._waiting -= 1
            self._nbytes -= _size(outcome)
            self._taken += 1
            many = self._waiting > MOST_RESPONSES // 2 or (self._nbytes > MOST_BYTES // 2 and self._waiting)
            if self._held and not many:
                self._hold(False)

    def close(self) -> None:
        """Nobody takes anything any more."""
        with self._lock:
            if self._held:
                self._hold(False)
            self._request = None

    def _hold(self, held: bool) -> None:
        # Under the lock: the model must learn of it in the order in which it was decided.
        self._held = held
        if self._request is not None:
            self._model.hold(self._request, held)

    def _look(self, taken: int) -> None:
        with self._lock:
            if not self._held:
                return
            stuck, taken = self._taken == taken, self._taken
            waiting, nbytes = self._waiting, self._nbytes
        if not stuck:
            self._model.call_later(PATIENCE_SECONDS, self._look, taken)
        elif self._give_up is not None:
            text = f"{waiting} responses of {nbytes} bytes waited for {PATIENCE_SECONDS:g} s for a client that took none"
            self._give_up(Unavailable(text))


def _size(outcome: Optional[Outcome]) -> int:
    return outcome.plan.nbytes if isinstance(outcome, Response) else 0
