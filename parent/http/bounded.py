"""uvicorn's HTTP protocol with bounds on what a client may have open, send, leave unread, and keep waiting for; of which it has none."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, List, Optional, Tuple, Union

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .door import LINGER_SECONDS, Door
from .limits import Phase, Sighting, judge

_LONGEST_HEAD = 64 << 10
"""Bytes of a request line and headers that a client may send."""

MOST_CHUNKS = 65536
"""Chunks that a body may come in (spec 6.4)."""

MOST_WAITING = 1000
"""Requests that a client may have sent before it gets the answer to the first."""

_INVALID = "Invalid HTTP request received."
_TIMED_OUT = b"The request was not complete in time."
_TIMEOUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    % len(_TIMED_OUT)
    + _TIMED_OUT
)

_IDLE, _HEAD, _BODY = Phase.IDLE, Phase.HEAD, Phase.BODY


class _TooMany(Exception):
    """Ends the parsing of what a client sends."""


async def _refuse(text: str, _scope: Any, _receive: Any, send: Callable[..., Any]) -> None:
    """The application for a request that makes no sense, whose turn comes after others."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class _Ending:
    """The transport, as uvicorn has it that answers the last request of a connection."""

    __slots__ = ("_protocol", "is_closing", "write")

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.end()


class _Flow(FlowControl):
    """Reads nothing while answers wait for their client, or requests for those before them, and nothing any more once ``ended``."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol
        self.ended = False

    def resume_reading(self) -> None:
        if self.read_paused and not (self.write_paused or self.ended or self._protocol.pipeline or self._transport.is_closing()):
            super().resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._protocol.sighting = None  # the client takes what it is sent
        self.resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """The protocol class for uvicorn's ``http`` setting, but for its argument ``door``. What is too much is answered with status 400, what
    does not come with 408, and a client that does not read its answer is cut off."""

    def __init__(self, *args: Any, door: Door, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door
        self.reading = _HEAD
        self.ending = False
        """The last answer was given, and the rest of its request is still to come."""
        self.deaf = False
        """There is no telling what comes."""
        self._received = 0
        self._chunks = 0
        self.sighting: Optional[Sighting] = None

    def connection_made(self, transport: Any) -> None:
        admitted = self._door.admits(len(self.connections))
        super().connection_made(transport)
        if admitted:
            self.flow = _Flow(self)
        else:
            self.connections.discard(self)
            self._door.refuse(transport, self.loop.time())

    def connection_lost(self, exc: Optional[Exception]) -> None:
        super().connection_lost(exc)
        del self.flow  # it holds the connection, which would then be there until the garbage collector comes by

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        # Only data that is nothing but a part of a head, or of a body, stays counted: what begins one may be mostly what is before it.
        self._received += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)
            return
        if self.reading is _HEAD and self._received > _LONGEST_HEAD:
            self.send_400_response(f"The request line and headers exceed {_LONGEST_HEAD} bytes.")

    def _parse(self, data: bytes) -> None:
        """Only HTTP/1 is spoken here, and a client's offer to speak something else is ignored, for which RFC 9110, 7.8 provides. The parser
        stops behind a head with such an offer and is done with the request: a new one is given that head without the offer, and goes on.

        Raises:
            httptools.HttpParserError: it makes no sense, or is more than there may be.
        """
        rest: Union[bytes, memoryview] = data
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("this is no proxy") from None
                rest = memoryview(rest)[offer.args[0] :]
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            self.parser.feed_data(head)

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, (field, value) in zip(self.names_as_sent(), self.headers):
            if field != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", b""))

    def names_as_sent(self) -> List[bytes]:
        """The names of ``headers``; a class that cares for how the client wrote them has them so."""
        return [name for name, _ in self.headers]

    def head_begins(self) -> None:
        self.reading = _HEAD
        self._received = 0
        self.sighting = None

    def head_ends(self) -> bool:
        """False for a head with an offer that is ignored: see ``_parse``."""
        if self.parser.should_upgrade():
            return False
        self.reading = _BODY
        self._received = self._chunks = 0
        if len(self.pipeline) >= MOST_WAITING:
            raise _TooMany
        return True

    def end(self) -> None:
        """Closes the connection after the last answer; if there is more of the request, when that has been read, and if there is what makes
        no sense, after a while: closed with something unread, the connection would be reset, and a client that sends everything before it
        reads would never see the answer."""
        flow: Any = self.flow
        if self.reading is not _BODY and not flow.ended:
            self.transport.close()
        elif not self.ending:
            self.ending = True
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.pipeline.clear()
            if flow.ended:
                flow.ended = False
                self.deaf = True
                self.loop.call_later(LINGER_SECONDS, self.transport.abort)
            flow.resume_reading()

    def on_chunk_header(self) -> None:
        # The last one, which is empty, ends the body.
        self._chunks += 1
        if self._chunks > MOST_CHUNKS + 1:
            raise _TooMany

    def send_400_response(self, msg: str) -> None:
        if self.ending:
            self.transport.close()
            return
        if self._chunks > MOST_CHUNKS + 1:
            msg = f"The body comes in more than {MOST_CHUNKS} chunks."
        if self.pipeline and self.pipeline[0][0].more_body:
            # Its turn will come, the rest of its body will not.
            self.pipeline[0] = self.pipeline[0][0], partial(_refuse, msg)
        before = self._before()
        if before is not None:
            # Those that came before it get their answers, and the connection ends with the last of them.
            before.keep_alive = False
            if isinstance(before, RequestResponseCycle):
                before.transport = _Ending(self)  # type: ignore[assignment]
            self.flow.ended = True  # type: ignore[attr-defined]
            self.flow.pause_reading()
            return
        super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self.head_begins()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if not self.head_ends():
            return
        super().on_headers_complete()
        if not self.cycle.keep_alive:
            self.cycle.transport = _Ending(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        if self.reading is _HEAD:
            return  # which has an offer: its request is yet to come
        self.reading = _IDLE
        super().on_message_complete()
        if self.ending:
            self.transport.close()

    def on_response_complete(self) -> None:
        """uvicorn's, but for the timer of an idle connection; and nothing more is read before all that has been read is being answered."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        self.flow.resume_reading()

    def look(self, now: float) -> None:
        """See ``door.Watched``."""
        if self not in self.connections:
            return  # lost since the list of them was made
        to_go = self.transport.get_write_buffer_size()
        phase = self._phase(to_go)
        nbytes, announced = self._progress() if phase is _BODY else (to_go, 0)
        self.sighting, expired = judge(self._door.limits, self.sighting, now, phase, nbytes, announced)
        if not expired:
            return
        if phase is Phase.WRITING or self.transport.is_closing():
            self.transport.abort()
            return
        if (phase is _HEAD and self.headers is not None) or (phase is _BODY and not self._responding()):
            self.transport.write(_TIMEOUT)
        self.transport.close()

    def _phase(self, to_go: int) -> Phase:
        if to_go:
            return Phase.WRITING
        if self.pipeline or self.flow.read_paused:
            return Phase.ANSWERING
        if self.reading is _BODY:
            return _BODY
        if self.cycle is not None and not self.cycle.response_complete:
            return Phase.ANSWERING
        return self.reading

    def _progress(self) -> Tuple[int, int]:
        """How many bytes of the body that is being read have come, and how many there will be, 0 if that is not known."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return self._received, int(length)

    def _responding(self) -> bool:
        """Whether an answer to the request that is being read has begun."""
        return self.cycle is not None and (self.cycle.response_complete or getattr(self.cycle, "response_started", False))

    def _before(self) -> Optional[Any]:
        """The last request that has come completely, or waits for its turn, if it was not answered yet."""
        if self.pipeline:
            return self.pipeline[0][0]
        cycle = self.cycle
        return cycle if cycle is not None and not cycle.response_complete and self.reading is not _BODY else None
