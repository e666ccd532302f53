"""Looks at a connection whose client reads as fast, or as slowly, as a test wants; with a clock that is told."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from typing import Any, Callable, Dict

from stublet.parent.http.bounded import BoundedProtocol
from stublet.parent.http.limits import Phase
from stublet.parent.http.server import HttpServer

PIECE = bytes(100_000)


class Stream:
    """An ASGI application that answers with pieces, until nobody takes them any more."""

    def __init__(self) -> None:
        self.pieces = 0
        self.gone = False

    async def __call__(self, scope: Dict[str, Any], receive: Any, send: Callable[..., Any]) -> None:
        leaving = asyncio.ensure_future(self._leave(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.gone:
            self.pieces += 1
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)
        await leaving

    async def _leave(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self.gone = True


async def until(condition: Callable[[], Any]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), 20)


async def look_at_a_stream() -> None:
    loop, stream = asyncio.get_running_loop(), Stream()
    server = HttpServer(stream, "127.0.0.1", 0)
    server.start()
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", server.port))
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: server.connections)
        (connection,) = server.connections
        assert isinstance(connection, BoundedProtocol)

        async def stuck() -> None:
            await until(lambda: connection.flow is not None and connection.flow.write_paused)

        await stuck()
        for now in (1000.0, 2000.0, 3000.0):
            connection.look(now)
            assert connection.sighting is not None and connection.sighting.phase is Phase.WRITING
            pieces = stream.pieces
            while stream.pieces < pieces + 2:
                assert await loop.sock_recv(client, 1 << 16), "cut off"
            await stuck()
        connection.look(4000.0)
        assert not connection.transport.is_closing()
        connection.look(4001.0)
        assert not connection.transport.is_closing()
        connection.look(5000.0)
        assert connection.transport.is_closing(), "it took nothing in all that time"
        await until(lambda: stream.gone)
    await server.stop(5)


def test_a_stream_that_is_taken_and_then_is_not() -> None:
    asyncio.run(look_at_a_stream())


async def receive_a_body_and_more() -> None:
    loop = asyncio.get_running_loop()

    async def application(scope: Dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    server = HttpServer(application, "127.0.0.1", 0)
    server.start()
    with closing(socket.socket()) as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", server.port))
        await until(lambda: server.connections)
        (connection,) = server.connections
        connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PIECE) + PIECE + b"GET / HT")
        connection.data_received(b"TP/1.1\r\nHost: x\r\n\r\n")
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        answers = b""
        while len(answers) < 2 * len(answer):
            received = await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 20)
            assert received, answers
            answers += received
        assert answers == 2 * answer
    await server.stop(5)


def test_a_head_that_begins_behind_a_large_body() -> None:
    """All of it in one piece, of which only the end is a head."""
    asyncio.run(receive_a_body_and_more())
