"""``generate`` and ``generate_stream`` over HTTP (spec 6.8)."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, Deque, List, Mapping, Optional, Tuple

import msgspec

from ...shm.errors import OutOfSharedMemory
from ..backlog import Backlog
from ..errors import InvalidArgument, ServerError, Unavailable, Unsupported
from ..header_forwarding import HeaderForwarding
from ..request import Outcome, Request, drop
from ..slabs import request_at
from ..tracing.trace import Trace
from . import generate_json, schemas
from .exchange import JSON, Disconnected, Exchange
from .routes import MODEL, Operation, Route

if TYPE_CHECKING:
    from ..core import Core
    from ..servable import Servable

_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_NOT_ONE = "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"


class GenerateApi:
    """Its ``routes`` ask the models of ``core``."""

    def __init__(self, core: Core, forwarding: HeaderForwarding) -> None:
        self._core = core
        self._forwarding = forwarding
        self._limit = core.options.http_max_input_size
        one = Operation("An inference, in flat JSON", schemas.GENERATE_RESPONSE, body=schemas.GENERATE_REQUEST, body_required=True)
        many = Operation(
            "An inference, in flat JSON, whose responses come as they are made", schemas.EVENT, "text/event-stream",
            schemas.GENERATE_REQUEST, body_required=True,
        )  # fmt: skip
        self.routes: List[Route] = [
            Route("POST", MODEL + "/generate", "inference", self._generate, one),
            Route("POST", MODEL + "/generate_stream", "inference", self._generate_stream, many),
        ]

    async def _generate(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        responses = await self._submit(exchange, name, version)
        try:
            with exchange.watched(responses.leave):
                outcome, final = await responses.next()
                if outcome is None:
                    raise Unsupported(_NOT_ONE)
                body = responses.encode(outcome)
                while not final:
                    outcome, final = await responses.next()
                    if outcome is not None:
                        drop(outcome)
                        raise Unsupported(_NOT_ONE)
        finally:
            responses.close()
        await exchange.answer(body, headers=[JSON])

    async def _generate_stream(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        responses = await self._submit(exchange, name, version)
        final = False
        try:
            with exchange.watched(responses.leave):
                while not final:
                    outcome, final = await responses.next()
                    if outcome is not None:
                        await self._send_event(exchange, responses, outcome)
        except asyncio.CancelledError:
            await self._send_event(exchange, responses, Unavailable("the server is ending"))
        finally:
            responses.close()
        if not exchange.started:
            await exchange.start(200, [_EVENTS])
        await exchange.piece(b"", more=False)

    async def _send_event(self, exchange: Exchange, responses: _Responses, outcome: Outcome) -> None:
        status = 200
        try:
            text = responses.encode(outcome)
        except ServerError as error:
            status, text = error.http_status, msgspec.json.encode({"error": str(error)})
        if not exchange.started:
            # The first response decides on the status of all.
            await exchange.start(status, [_EVENTS])
        with exchange.sending():
            await exchange.piece(b"data: " + text + b"\n\n")

    async def _submit(self, exchange: Exchange, name: str, version: Optional[int]) -> _Responses:
        model = self._core.find(name, version)
        if (exchange.header(b"content-encoding") or b"identity") != b"identity":
            raise InvalidArgument("Unsupported content-encoding, only 'identity' is supported.")
        forwarded = self._forwarding.parameters(exchange.headers_as_sent(), reserved=False)
        exchange.begin_trace(self._core.tracer, name)
        body = await exchange.body(self._limit)
        return _Responses.ask(model, body, forwarded, exchange.received())


class _Responses:
    """The responses to one request, awaited one after another in the loop; they arrive in any thread."""

    def __init__(self, model: Servable, request_id: str) -> None:
        self._model = model
        self._request_id = request_id
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._request: Optional[Request] = None
        self._waiting: Deque[Tuple[Optional[Outcome], bool]] = deque()
        self._backlog = Backlog(model, self._give_up)
        self._arrived = asyncio.Event()
        self._left = False
        self._ended = False
        """The last response has arrived; what comes after it is dropped."""

    @classmethod
    def ask(cls, model: Servable, body: bytearray, forwarded: Mapping[str, str], trace: Optional[Trace]) -> _Responses:
        """Submits a request.

        Raises:
            ServerError: it is wrong, or cannot be served.
        """
        parsed = generate_json.parse(model, body, forwarded)
        responses = cls(model, parsed.request_id)
        block = model.place(parsed.layout)
        try:
            for place, data in zip(parsed.layout.placements, parsed.data):
                block.write(place.offset, data, place.nbytes)
        except OutOfSharedMemory as error:
            model.arena.dropped.append(block)
            raise model.no_room(error) from error
        request = request_at(block, parsed.layout, parsed.extras, responses._settle)
        responses._request = request
        request.priority = parsed.priority
        request.trace = trace
        responses._backlog.attach(request)
        model.submit(request)
        return responses

    async def next(self) -> Tuple[Optional[Outcome], bool]:
        """The next outcome, None for a final flag that came alone, and whether it is the last.

        Raises:
            Disconnected: the client left.
        """
        while not self._waiting and not self._left:
            self._arrived.clear()
            await self._arrived.wait()
        if self._left:
            raise Disconnected
        outcome, final = self._waiting.popleft()
        self._backlog.took(outcome)
        return outcome, final

    def encode(self, outcome: Outcome) -> bytes:
        """The JSON of an outcome.

        Raises:
            ServerError: that is the outcome, or it has no JSON form.
        """
        if isinstance(outcome, ServerError):
            raise outcome
        return generate_json.encode(self._model, self._request_id, outcome)

    def leave(self) -> None:
        """The client is gone."""
        self._left = True
        self._arrived.set()

    def close(self) -> None:
        """Nobody waits any more: cancels the request unless it has ended, and drops what has arrived."""
        self._backlog.close()
        if not self._ended:
            self._cancel()
        while self._waiting:
            drop(self._waiting.popleft()[0])

    def _settle(self, outcome: Optional[Outcome], final: bool) -> None:
        if threading.get_ident() == self._thread:
            self._arrive(outcome, final)
        else:
            self._loop.call_soon_threadsafe(self._arrive, outcome, final)

    def _arrive(self, outcome: Optional[Outcome], final: bool) -> None:
        if self._ended:
            drop(outcome)
            return
        self._waiting.append((outcome, final))
        self._ended = final
        self._backlog.put(outcome)
        self._arrived.set()

    def _give_up(self, error: Unavailable) -> None:
        if not self._ended:
            self._waiting.append((error, True))
            self._backlog.put(error)
            self._cancel()
            self._arrived.set()

    def _cancel(self) -> None:
        self._ended = True
        if self._request is not None:
            self._model.cancel(self._request)
