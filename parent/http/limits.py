"""What clients of HTTP may take: how many may be there, and how long one may keep the server waiting. No sockets here."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, Optional, Tuple

LEAST_BYTES_PER_SECOND = 1024
"""Of a body on its way in, or an answer on its way out, over ``client_timeout``. Who is slower holds memory for next to nothing."""

MOST_TIMEOUTS = 20
"""So many times ``client_timeout`` a large one may take: its memory is taken all the while, of which others want some."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """``max_connections`` at a time; 0 for as many as the limit of descriptors permits. In seconds: ``client_timeout`` is what a client
    has for the head of a request, and in which it must send, or take, 1 KiB for each second of it and a twentieth of the whole, or all
    that is left; ``idle_timeout`` is how long a connection may be open between two requests."""

    max_connections: int = 16384
    client_timeout: float = 60.0
    idle_timeout: float = 600.0


class Phase(enum.IntEnum):
    """What a connection is at. ``HEAD`` from the beginning, for the first request should not be long in coming; ``ANSWERING`` when the
    client has done its part."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    ANSWERING = 3
    WRITING = 4


class Sighting(NamedTuple):
    """What a connection was found at, since when, and with how many bytes: of a body, those that came; of an answer, those to go, which
    were ``first`` so many."""

    phase: Phase
    since: float
    nbytes: int
    first: int


def judge(
    limits: HttpLimits, before: Optional[Sighting], now: float, phase: Phase, nbytes: int, announced: int = 0
) -> Tuple[Optional[Sighting], bool]:
    """What to remember of a look at a connection, and whether its client's time is up.

    Args:
        before: what was remembered of the last look; None if another request has begun since then.
        now: in seconds.
        nbytes: see ``Sighting``.
        announced: of a body, how many bytes there will be, as far as that is known.
    """
    if phase is Phase.ANSWERING:
        return None, False
    if before is None or before.phase is not phase:
        return Sighting(phase, now, nbytes, nbytes), False
    patience = limits.idle_timeout if phase is Phase.IDLE else limits.client_timeout
    if now - before.since < patience:
        return before, False
    if phase is Phase.IDLE or phase is Phase.HEAD:
        return before, True
    moved, whole = (nbytes - before.nbytes, announced) if phase is Phase.BODY else (before.nbytes - nbytes, before.first)
    if moved < max(LEAST_BYTES_PER_SECOND * patience, whole / MOST_TIMEOUTS):
        return before, True
    return before._replace(since=now, nbytes=nbytes), False
