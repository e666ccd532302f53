"""Calls that need no thread of their own, on grpcio's server.

grpcio's server hands each call to a thread, which waits for the message, and then for the answer: two switches of the interpreter's lock
more than needed, and a call costs more than twice as much; a stream keeps its thread for hours. Its asyncio server costs as much again
(``python -m benchmarks grpc`` compares them). But the server itself is driven by events, each of which comes with a function of ours: what
is handled here goes on in that function, in the thread that takes events, and is answered in whatever thread the answer becomes known.

This takes the place of ``_unary_response_in_pool`` and ``_stream_response_in_pool`` of grpc._server, and uses what they use.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, List, Mapping, Optional, Protocol, Sequence, Tuple
from urllib.parse import quote

import grpc
from grpc import _server
from grpc._cython import cygrpc

from ...shm.message import ErrorCode
from ..errors import InternalError, ServerError

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 2**31 - 1
_DETAILS_BYTES = 7000
"""Clients take 8 KiB of trailers, in which what is not printable takes three bytes for one."""
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

STATUS = {
    ErrorCode.UNKNOWN: grpc.StatusCode.UNKNOWN,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.INVALID_ARG: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorCode.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorCode.CANCELLED: grpc.StatusCode.CANCELLED,
}
"""Spec 6.3."""

_Ended = Tuple[Any, Sequence[Callable[[], None]]]
"""What an event's function tells the server: the state of the call and its callbacks, if the call is over."""

_RECEIVE = "receive_message"
_SEND = "send_message"


class Call:
    """One call, in either direction as far as it goes. Its methods may be used in any thread; what they call is called in the thread that
    takes events."""

    __slots__ = ("_event", "_state")

    def __init__(self, event: Any, state: Any) -> None:
        self._event = event
        self._state = state

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the client sent before its messages; names are in lower case."""
        return dict(self._event.invocation_metadata)

    def on_end(self, ended: Callable[[], None]) -> None:
        """``ended`` will be called when the call is over, answered or given up. Only before the first message has come."""
        self._state.callbacks.append(ended)

    def receive(self, take: Callable[[Optional[bytes]], None]) -> None:
        """``take`` will be called with the next message; None if the client sends no more. Not if the client gives up."""
        state = self._state

        def received(event: Any) -> _Ended:
            message = event.batch_operations[0].message()
            over = self._done(_RECEIVE)
            if over[0] is None and state.client is not _server._CANCELLED:
                try:
                    take(message)
                except Exception as error:
                    self.fail(internal(error))
            return over

        with state.condition:
            if _server._is_rpc_state_active(state):
                state.due.add(_RECEIVE)
                self._event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)

    def send(self, message: bytes, sent: Callable[[], None]) -> None:
        """Sends one message of several; ``sent`` will be called when the next one may be sent. Not if the client has given up."""
        state = self._state

        def done(_event: Any) -> _Ended:
            over = self._done(_SEND)
            if over[0] is None:
                try:
                    sent()
                except Exception as error:
                    self.fail(internal(error))
            return over

        with state.condition:
            if not _server._is_rpc_state_active(state):
                return
            operations: List[Any] = [cygrpc.SendMessageOperation(message, 0)]
            if state.initial_metadata_allowed:
                operations.insert(0, _server._get_initial_metadata_operation(state, None))
                state.initial_metadata_allowed = False
            state.due.add(_SEND)
            self._event.call.start_server_batch(operations, done)

    def finish(self, message: Optional[bytes] = None) -> None:
        """Ends the call well, with its one message if that is what it is to have. Once."""
        if message is not None and len(message) > MESSAGE_BYTES:
            self.fail(too_large(len(message)))
            return
        with self._state.condition:
            if not self._state.statused:
                _server._status(self._event, self._state, message)

    def fail(self, error: ServerError) -> None:
        """Ends the call with an error, unless it has ended."""
        with self._state.condition:
            if not self._state.statused:
                self._state.code = STATUS[error.code]
                self._state.details = details_of(error).encode()
                _server._status(self._event, self._state, None)

    def _done(self, token: str) -> _Ended:
        with self._state.condition:
            return _server._possibly_finish_call(self._state, token)  # type: ignore[no-any-return]


class UnaryHandler(Protocol):
    """Takes a call with its message. What it raises fails the call."""

    def __call__(self, message: bytes, call: Call) -> None: ...


class StreamHandler(Protocol):
    """Takes a call, whose messages it receives itself. What it raises fails the call."""

    def __call__(self, call: Call) -> None: ...


class Inline:
    """A handler that needs no thread, as the behaviour that grpcio is told of."""

    __slots__ = ("start",)

    def __init__(self, start: Callable[[Call], None]) -> None:
        self.start = start

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("grpcio called a handler itself that belongs to InlineExecutor")


def unary(handler: UnaryHandler) -> Any:
    """A method handler, of raw bytes, for calls with one message either way."""

    def start(call: Call) -> None:
        call.receive(lambda message: None if message is None else _guarded(handler, message, call))

    return grpc.unary_unary_rpc_method_handler(Inline(start))


def stream(handler: StreamHandler) -> Any:
    """A method handler, of raw bytes, for calls with any number of messages either way."""

    def start(call: Call) -> None:
        try:
            handler(call)
        except ServerError as error:
            call.fail(error)

    return grpc.stream_stream_rpc_method_handler(Inline(start))


class InlineExecutor(ThreadPoolExecutor):
    """What grpcio's server is given for its handlers: runs those that block in threads, and the others at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # From grpc._server: submit(state.context.run, _..._response_in_pool, rpc_event, state, behavior, ...)
        if len(args) > 3 and type(args[3]) is Inline:
            _, event, state, behavior = args[:4]
            behavior.start(Call(event, state))
            return _STARTED
        return super().submit(fn, *args, **kwargs)


_STARTED: Future[Any] = Future()
_STARTED.set_result(None)


def too_large(nbytes: int) -> InternalError:
    """What a client is told of a response of more than ``MESSAGE_BYTES``."""
    return InternalError(f"Response has byte size {nbytes} which exceeds gRPC's byte size limit {MESSAGE_BYTES}.")


def details_of(error: ServerError) -> str:
    """What a client is told, cut where it would not fit into a trailer."""
    text = str(error)
    while len(text) > _DETAILS_BYTES // 3 and (size := len(quote(text, safe=_PRINTABLE))) > _DETAILS_BYTES:
        text = text[: len(text) * _DETAILS_BYTES // size - 3] + "..."
    return text


def _guarded(handler: UnaryHandler, message: bytes, call: Call) -> None:
    try:
        handler(message, call)
    except ServerError as error:
        call.fail(error)


def internal(error: Exception) -> InternalError:
    """What a client is told of an error of ours, which goes to the log."""
    logger.error("internal error in a gRPC call", exc_info=error)
    return InternalError("internal error: the server's log has the details")
