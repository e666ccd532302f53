"""One HTTP request and its answer, over ASGI: reading a body, sending JSON, errors and pieces, and noticing that the client left."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import msgspec

from ...shm.errors import OutOfSharedMemory
from ..errors import Unavailable
from ..memory_limits import UNCOUNTED_BYTES
from ..tracing.trace import Trace
from ..tracing.tracer import Tracer
from . import json_tensor
from .json_document import check_size
from .tracing import RECV_END, SEND_END, SEND_START, begin_trace

if TYPE_CHECKING:
    from ..core import Core

Scope = Dict[str, Any]
Receive = Callable[[], Awaitable[Dict[str, Any]]]
Send = Callable[[Dict[str, Any]], Awaitable[None]]
Headers = List[Tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")

NAMES_AS_SENT = "stublet.header_names"
"""In a scope, from a server that has it: the names of the headers as the client wrote them."""

BODY = "stublet.body"
"""In a scope, from the front end: the body of an inference, which knows how much of it is there."""


class Disconnected(Exception):
    """The client went away before its request was complete, or before it was answered."""


class Exchange:
    """A request to ``core``, whose ``scope`` is ASGI's, and the way of its answer. ``started`` once the head of an answer was sent. ``trace``,
    if it has one, must be held by nobody else for longer than the request: an exception may keep the variables of whoever raised it."""

    __slots__ = ("_core", "receive", "scope", "send", "started", "trace")

    def __init__(self, core: Core, scope: Scope, receive: Receive, send: Send) -> None:
        self._core = core
        self.scope = scope
        self.receive = receive
        self.send = send
        self.started = False
        self.trace: Optional[Trace] = None

    def header(self, name: bytes) -> Optional[bytes]:
        """The value of a header field, whose name is given in lower case; None if there is none."""
        for field, value in self.scope["headers"]:
            if field == name:
                return bytes(value)
        return None

    def headers_as_sent(self) -> Headers:
        """All header fields; their names as the client wrote them, if the server knows that, or else in lower case."""
        headers: Headers = self.scope["headers"]
        names = self.scope.get(NAMES_AS_SENT)
        return [(name, value) for name, (_, value) in zip(names, headers)] if names else headers

    async def chunk(self) -> Tuple[bytes, bool]:
        """The next bytes of the body, and whether more will come.

        Raises:
            Disconnected: the client has gone.
        """
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message.get("body", b""), message.get("more_body", False)

    async def body(self, limit: int) -> bytearray:
        """The whole body.

        Raises:
            InvalidArgument: it is longer than ``limit`` bytes.
            Unavailable: there is no room for it.
            Disconnected: the client has gone.
        """
        body, more, counted = bytearray(), True, 0
        try:
            while more:
                chunk, more = await self.chunk()
                nbytes = len(body) + len(chunk)
                check_size(nbytes, limit)
                if nbytes > UNCOUNTED_BYTES:
                    self._core.take_for_body(nbytes - counted)
                    counted = nbytes
                body += chunk
        except OutOfSharedMemory as error:
            raise Unavailable(f"the body of a request finds no room: {error}") from error
        finally:
            self._core.request_memory.give_back(counted)
        return body

    async def document(self, limit: int, default: Any = ...) -> Any:
        """The body as JSON; ``default``, if there is one, for an empty body.

        Raises:
            InvalidArgument: it is no JSON, or longer than ``limit`` bytes.
            Disconnected: the client has gone.
        """
        body = await self.body(limit)
        if not body and default is not ...:
            return default
        return json_tensor.decode_document(body)

    async def answer_json(self, document: Any, status: int = 200, headers: Sequence[Tuple[bytes, bytes]] = ()) -> None:
        """Answers with a JSON document."""
        await self.answer(msgspec.json.encode(document), status, [JSON, *headers])

    async def answer_error(self, status: int, text: str, headers: Sequence[Tuple[bytes, bytes]] = ()) -> None:
        """Answers with an error, as every error of the protocol is told."""
        await self.answer_json({"error": text}, status, headers)

    async def answer(self, body: bytes = b"", status: int = 200, headers: Sequence[Tuple[bytes, bytes]] = ()) -> None:
        """Answers with these bytes."""
        with self.sending():
            await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
            await self.send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Headers) -> None:
        """Sends the head of an answer, whose body ``piece`` sends."""
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data: Any, more: bool = True) -> None:
        """Sends a piece of a body, and returns when the socket takes more."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    def begin_trace(self, tracer: Tracer, model: str) -> None:
        """The request is one for a model."""
        if tracer.active:
            self.trace = begin_trace(tracer, model, self.scope["headers"])

    def received(self) -> Optional[Trace]:
        """The trace, to be given to the model, now that the request is complete."""
        if self.trace is not None:
            self.trace.event(RECV_END)
        return self.trace

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a response is sent."""
        if self.trace is not None:
            self.trace.event(SEND_START)
        yield
        if self.trace is not None:
            self.trace.event(SEND_END)

    @contextmanager
    def watched(self, on_departure: Callable[[], None]) -> Iterator[None]:
        """Once the body has been read: calls back if the client goes away meanwhile."""
        watch = asyncio.ensure_future(self._watch(on_departure))
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self, on_departure: Callable[[], None]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            continue
        on_departure()
