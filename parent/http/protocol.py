"""uvicorn's HTTP protocol with a short way for inferences.

Through ASGI an inference costs a task, an event, two futures, a dozen dictionaries and two writes to the socket, and uvicorn joins body
chunks before the application sees them: together more than twice what the rest of the server does for a small request, and two copies
of a large one. So where a POST to ``.../infer`` has nothing special about it, this class does the same with callbacks: chunks go from
the parser into shared memory, the outcome is written when the stub's reply is read, in one piece. Everything else about the
connection (parsing, keep-alive, pipelining, shutting down), and every other request, is uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, List, Optional, Tuple

import msgspec

from ..errors import InternalError, ServerError, Unsupported
from ..request import Outcome, Request, drop
from ..servable import Servable
from ..tracing.trace import Trace
from . import infer, response
from .bounded import BoundedProtocol
from .exchange import BODY, NAMES_AS_SENT
from .front_end import NO_DECOUPLED, HttpFrontEnd, InferFields
from .limits import Phase
from .tracing import RECV_END, SEND_END, SEND_START, begin_trace

logger = logging.getLogger(__name__)

_STATUS_LINE = {
    200: b"HTTP/1.1 200 OK\r\n",
    400: b"HTTP/1.1 400 Bad Request\r\n",
    404: b"HTTP/1.1 404 Not Found\r\n",
    500: b"HTTP/1.1 500 Internal Server Error\r\n",
    501: b"HTTP/1.1 501 Not Implemented\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n",
    504: b"HTTP/1.1 504 Gateway Timeout\r\n",
}
_CLOSE = b"connection: close\r\n"
_IDLE, _BODY = Phase.IDLE, Phase.BODY


class _NoEvent:
    """uvicorn sets the event of a cycle whose connection is lost; nobody waits for it here."""

    def set(self) -> None:
        return


class InferCycle:
    """One inference: what uvicorn needs to know of a request, and nothing more."""

    __slots__ = ("_header", "_model", "_protocol", "_request", "body", "disconnected", "keep_alive", "response_complete", "trace")

    message_event = _NoEvent()

    def __init__(self, protocol: InferProtocol, model: Servable, body: infer.InferBody, keep_alive: bool) -> None:
        self._protocol = protocol
        self._model = model
        self.body = body
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self._request: Optional[Request] = None
        self.trace: Optional[Trace] = None

    def feed(self, chunk: bytes) -> None:
        try:
            self.body.feed(chunk)
        except Exception as error:
            self._refuse(error)

    def submit(self) -> None:
        """The body is complete: on to the model."""
        model = self._model
        try:
            header, block = self.body.finish()
            self._header = header
            self._request = infer.make_request(model, header, block, self._settle)
            if self.trace is not None:
                self.trace.event(RECV_END)
                self._request.trace = self.trace
            model.submit(self._request)
        except Exception as error:
            self._refuse(error)

    def cancel(self) -> None:
        """The client is gone."""
        self.body.abandon()
        if self._request is not None:
            self._model.cancel(self._request)

    def _settle(self, outcome: Optional[Outcome], _final: bool) -> None:
        assert outcome is not None  # the model is not decoupled
        self._request = None  # the two hold each other
        protocol = self._protocol
        if threading.get_ident() == protocol.loop_thread:
            self._respond(outcome)
        else:
            protocol.loop.call_soon_threadsafe(self._respond, outcome)

    def _respond(self, outcome: Outcome) -> None:
        if self.disconnected or self._protocol.transport.is_closing():
            drop(outcome)
            return
        if isinstance(outcome, ServerError):
            self._fail(outcome)
            return
        if response.takes_long(self._header, outcome):
            encoding = self._protocol.loop.run_in_executor(None, response.encode, self._model, self._header, outcome)
            encoding.add_done_callback(self._on_encoded)
            return
        try:
            encoded = response.encode(self._model, self._header, outcome)
        except Exception as error:
            outcome.release()
            self._refuse(error)
            return
        self._answer(encoded)

    def _on_encoded(self, encoding: asyncio.Future[response.Encoded]) -> None:
        error = encoding.exception()
        if self.disconnected or self._protocol.transport.is_closing():
            return
        if isinstance(error, Exception):
            self._refuse(error)
        else:
            self._answer(encoding.result())

    def _answer(self, encoded: response.Encoded) -> None:
        if encoded.json_bytes is None:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % encoded.nbytes
        else:
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
                b"content-length: %d\r\n" % (encoded.json_bytes, encoded.nbytes)
            )
        self._write(head, encoded.pieces)

    def _refuse(self, error: Exception) -> None:
        """Answers an error of the request, or, with its traceback in the log, one of ours."""
        self.body.abandon()
        if not isinstance(error, ServerError):
            logger.error("internal error in an inference of model '%s'", self._model.name, exc_info=error)
            error = InternalError("internal error: the server's log has the details")
        self._fail(error)

    def _fail(self, error: ServerError) -> None:
        if self.disconnected:
            return
        body = msgspec.json.encode({"error": str(error)})
        head = _STATUS_LINE[error.http_status] + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        self._write(head, [body])

    def _write(self, head: bytes, pieces: List[Any]) -> None:
        transport = self._protocol.transport
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.event(SEND_START)
        end = b"\r\n" if self.keep_alive else _CLOSE + b"\r\n"
        if len(pieces) == 1:
            transport.write(b"".join((head, end, pieces[0])))
        else:
            transport.writelines((head + end, *pieces))
        if trace is not None:
            trace.event(SEND_END)
        self.response_complete = True
        if not self.keep_alive:
            self._protocol.end()
        self._protocol.on_infer_complete()


class InferProtocol(BoundedProtocol):
    """The protocol class for uvicorn's ``http`` setting; ``config.app`` must be the front end."""

    cycle: Any

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        front_end = self.config.app
        assert isinstance(front_end, HttpFrontEnd)
        self._front_end = front_end
        self.loop_thread = front_end.thread
        self._asgi_cycle: Any = None
        self._targets = front_end.infer_targets

    def on_message_begin(self) -> None:
        self.head_begins()
        # uvicorn's scope is made only when ASGI is to be used.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        if not self.head_ends():
            return
        cycle = self._infer_cycle()
        if cycle is not None:
            self.cycle = cycle
            return
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_infer_complete(self) -> None:
        """What ``on_response_complete`` does, for a connection that has no other request."""
        if self.pipeline or self.transport.is_closing():
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if type(cycle) is not InferCycle:
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.feed(body)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if type(cycle) is not InferCycle or self.reading is not _BODY:
            super().on_message_complete()
            return
        self.reading = _IDLE
        if not cycle.response_complete:
            cycle.submit()
        elif self.ending:
            self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._asgi_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        cycle = self.cycle
        if type(cycle) is InferCycle and not cycle.response_complete:
            cycle.cancel()
        if self._asgi_cycle is not None:
            # uvicorn tells only the last of several in a pipeline.
            self._asgi_cycle.disconnected = True
        super().connection_lost(exc)
        # Without it, connection and cycle hold each other, and all that the request brought, until the garbage collector comes by.
        self.cycle = self._asgi_cycle = None

    def _progress(self) -> Tuple[int, int]:
        cycle = self.cycle
        body: Any = cycle.body if type(cycle) is InferCycle else self.scope.get(BODY)
        return super()._progress() if body is None or cycle.response_complete else body.progress()

    def _infer_cycle(self) -> Optional[InferCycle]:
        """The short way for the request whose headers are complete; None if it has to take the long one."""
        if not self.url.endswith(b"/infer") or self.parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.parser.get_http_version() != "1.1":
            return None
        fields = InferFields.of(self.headers)
        if fields.content_encoding or fields.accept_encoding:
            return None
        target = self._targets.get(self.url) or self._front_end.infer_target(self.url)
        if target is None:
            return None
        try:
            model = self._front_end.core.find(*target)
            if model.decoupled:
                raise Unsupported(NO_DECOUPLED)
            body = infer.InferBody(model, fields.header_length, fields.content_length, self._front_end.limit)
        except ServerError:
            # The long way raises it too, and then answers.
            return None
        cycle = InferCycle(self, model, body, self.parser.should_keep_alive())
        if self._front_end.core.tracer.active:
            cycle.trace = begin_trace(self._front_end.core.tracer, model.name, self.headers)
        return cycle


class ForwardingProtocol(InferProtocol):
    """Where headers become parameters of requests: tells the front end their names as the client wrote them."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._names: List[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._names.append(name)
        super().on_header(name, value)

    def names_as_sent(self) -> List[bytes]:
        return self._names

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.reading is _BODY:
            self.scope[NAMES_AS_SENT] = self._names  # type: ignore[literal-required]
