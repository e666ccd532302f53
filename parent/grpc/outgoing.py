"""Answers that gRPC has, and whose clients have not taken them: of what gRPC holds it says neither how much it is, nor since when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Dict, List, Tuple

from ..errors import Unavailable

if TYPE_CHECKING:
    from .inline import Call

COUNTED_BYTES = 64 << 10
"""An answer counts from this size on."""

COPIES = 2
"""What is sent is there as Python has it, and as gRPC does."""

PATIENCE_SECONDS = 60.0
LEAST_BYTES_PER_SECOND = 1 << 20
"""A client has that time for an answer, and, for a large one, as long as this takes on top."""


class Outgoing:
    """In any thread.

    Args:
        most: bytes that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: Dict[Call, Tuple[int, float]] = {}  # bytes, until when
        self._nbytes = 0

    def check(self, nbytes: int = 0) -> None:
        """Whether an answer of so many bytes may be sent, or, without it, whether it pays to make one.

        Raises:
            Unavailable: clients have to take theirs first.
        """
        if self._nbytes and self._nbytes + COPIES * nbytes > self._most:
            raise Unavailable(
                f"answers that take {self._nbytes} bytes wait to be taken by their clients, of {self._most} that may: try again later"
            )

    def put(self, call: Call, nbytes: int, now: float) -> None:
        """An answer is on its way, the only one of its call. ``now``: in seconds of any clock."""
        held = COPIES * nbytes
        until = now + PATIENCE_SECONDS + nbytes / LEAST_BYTES_PER_SECOND
        with self._lock:
            self._waiting[call] = held, until
            self._nbytes += held

    def took(self, call: Call) -> None:
        """The answer of a call was taken, if it had one, or the call is over."""
        with self._lock:
            held, _ = self._waiting.pop(call, (0, 0.0))
            self._nbytes -= held

    def overdue(self, now: float) -> List[Call]:
        """Those whose clients have had their time."""
        with self._lock:
            return [call for call, (_, until) in self._waiting.items() if until < now]
