"""Who may come in: the number of connections, the sweep that looks for clients that keep the server waiting, and refusals.

There is no timer for a connection, and none for a request: one task looks at all connections from time to time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Optional, Protocol, Sequence, Set

from ..descriptors import affordable
from .limits import HttpLimits

logger = logging.getLogger(__name__)

_LOOKS = 8
"""In the shorter one of the two times that clients have: it may be exceeded by an eighth."""
_SHORTEST_PERIOD = 0.05
_LONGEST_PERIOD = 5.0
_AT_ONCE = 500
"""Connections that are looked at before others get a turn: about a millisecond."""
_LINGERING = 1024
LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 << 10
_QUIET_SECONDS = 60.0

_REFUSAL = b'{"error":"too many connections: try again later"}'
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    % len(_REFUSAL)
    + _REFUSAL
)


class Watched(Protocol):
    """A connection, as the sweep sees it."""

    def look(self, now: float) -> None:
        """Ends the connection if its client's time is up. ``now`` is the loop's time."""


class Door:
    """Admits connections to one port, and watches them.

    Args:
        what: what is served there, for the log.
    """

    def __init__(self, limits: HttpLimits, what: str) -> None:
        self.limits = limits
        self._what = what
        self._most = affordable(limits.max_connections)
        self._lingering: Set[Refused] = set()
        self._refused = 0
        self._told: Optional[float] = None

    def admits(self, connections: int) -> bool:
        """Whether one more may come in, when so many are there."""
        return connections < self._most

    def refuse(self, transport: Any, now: float) -> None:
        """Tells a client that there are too many, and closes its connection when it has read it."""
        self._refused += 1
        if self._told is None or now - self._told >= _QUIET_SECONDS:
            logger.warning("%s: %d connections are open, which is the limit; %d refused so far", self._what, self._most, self._refused)
            self._told = now
        transport.set_protocol(Refused(transport, self._lingering))
        transport.write(_REFUSED)
        if len(self._lingering) > _LINGERING or not transport.can_write_eof():
            transport.close()
        else:
            # Closed at once, with a request unread, the connection would be reset, and the client might never see the answer.
            transport.write_eof()

    async def watch(self, connections: Set[Any]) -> None:
        """Looks at the connections from time to time, until cancelled."""
        loop = asyncio.get_running_loop()
        period = min(self.limits.client_timeout, self.limits.idle_timeout) / _LOOKS
        period = min(max(period, _SHORTEST_PERIOD), _LONGEST_PERIOD)
        while True:
            await asyncio.sleep(period)
            watched: Sequence[Watched] = list(connections)
            for start in range(0, len(watched), _AT_ONCE):
                now = loop.time()
                for connection in watched[start : start + _AT_ONCE]:
                    connection.look(now)
                await asyncio.sleep(0)


class Refused(asyncio.Protocol):
    """A refused connection, until its client closes it, or for two seconds."""

    def __init__(self, transport: Any, lingering: Set[Refused]) -> None:
        self._transport = transport
        self._lingering = lingering
        self._received = 0
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, transport.abort)
        lingering.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > _LINGER_BYTES:
            self._transport.abort()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._timer.cancel()
        self._lingering.discard(self)
