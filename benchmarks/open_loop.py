"""Load that does not wait for answers: requests are sent when they are due, whatever became of those before them.

So a server that is slow does not slow its clients down, which would hide how slow it is; latencies count from when a request was due.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import BenchmarkError

# So many connections with a request in flight are more than a server that refuses in time ever needs.
_MOST_CONNECTIONS = 10_000
_ANSWERED_WITHIN = 30.0
# How finely requests are spaced.
_TICK = 0.001


class Outcome(NamedTuple):
    """What became of a request; times are the loop's, in seconds."""

    due: float
    ended: float
    status: int

    @property
    def latency(self) -> float:
        return self.ended - self.due


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, client: OpenLoopClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self.due = 0.0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, mark, body = self._data.partition(b"\r\n\r\n")
        if not mark:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        if len(body) >= length:
            self._data = b""
            self._client.answered(self, int(lines[0].split()[1]), self._loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost(self)


class OpenLoopClient:
    """Sends one request again and again. `outcomes` has what was answered since it was last emptied."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._address = host, port
        self._request = request
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._on_answer: Callable[[], None] | None = None
        self._broken = ""
        self.outcomes: list[Outcome] = []

    async def at_rates(self, *phases: tuple[float, float]) -> list[list[Outcome]]:
        """Requests per second and for how many seconds, one phase after the other; and what became of those of each, in the order in which
        they were due.

        Raises BenchmarkError if connections break, or answers do not come.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        starts, total = [], 0
        for rate, seconds in phases:
            starts.append(began)
            await self._send_all(rate, int(rate * seconds), began)
            total += int(rate * seconds)
            began += seconds
        deadline = loop.time() + _ANSWERED_WITHIN
        while len(self.outcomes) < total:
            if loop.time() > deadline:
                raise BenchmarkError(f"{total - len(self.outcomes)} of {total} requests were not answered")
            await self._tick()
        outcomes = sorted(self._taken())
        edges = [bisect.bisect_left(outcomes, (start,)) for start in starts]
        return [outcomes[start:end] for start, end in zip(edges, [*edges[1:], total], strict=True)]

    async def _send_all(self, rate: float, count: int, began: float) -> None:
        loop = asyncio.get_running_loop()
        sent = 0
        while sent < count:
            due = min(int((loop.time() - began) * rate), count)
            for number in range(sent, due):
                self._send(began + number / rate)
            sent = max(sent, due)
            await self._tick()

    async def closed(self, connections: int, seconds: float) -> list[Outcome]:
        """So many requests in flight all the time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        def next_one() -> None:
            if loop.time() < end:
                self._send(loop.time())

        self._on_answer = next_one
        for _ in range(connections):
            next_one()
        while self._busy or self._connecting or loop.time() < end:
            await self._tick()
        self._on_answer = None
        return self._taken()

    async def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()
        await asyncio.sleep(0)

    def answered(self, connection: _Connection, status: int, now: float) -> None:
        self._busy.discard(connection)
        self._idle.append(connection)
        self.outcomes.append(Outcome(connection.due, now, status))
        if self._on_answer is not None:
            self._on_answer()

    def lost(self, connection: _Connection) -> None:
        if connection in self._busy:
            self._broken = "the server closed a connection with a request in flight"
        elif connection in self._idle:
            self._idle.remove(connection)

    async def _tick(self) -> None:
        await asyncio.sleep(_TICK)
        if self._broken:
            raise BenchmarkError(self._broken)

    def _send(self, due: float) -> None:
        if self._idle:
            self._put(self._idle.pop(), due)
            return
        if len(self._busy) + len(self._connecting) >= _MOST_CONNECTIONS:
            raise BenchmarkError(f"{_MOST_CONNECTIONS} requests are in flight: the server neither answers nor refuses in time")
        task = asyncio.ensure_future(self._connect(due))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, due: float) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(self), *self._address)
        except OSError as error:
            self._broken = f"cannot connect: {error}"
        else:
            self._put(connection, due)

    def _put(self, connection: _Connection, due: float) -> None:
        connection.due = due
        self._busy.add(connection)
        connection.transport.write(self._request)

    def _taken(self) -> list[Outcome]:
        outcomes, self.outcomes = self.outcomes, []
        return outcomes
