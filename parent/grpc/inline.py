"""Calls that need no thread of their own, on grpcio's server.

grpcio's server hands each call to a thread, which waits for the message, and then for the answer: two switches of the interpreter's lock
more than needed, and a call costs more than twice as much; a stream keeps its thread for hours. Its asyncio server costs as much again
(``python -m benchmarks grpc`` compares them). But the server itself is driven by events, each of which comes with a function of ours: what
is handled here goes on in that function, in the thread that takes events, and is answered in whatever thread the answer becomes known.

This takes the place of ``_unary_response_in_pool`` and ``_stream_response_in_pool`` of grpc._server, and uses what they use.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, List, Mapping, Optional, Protocol, Sequence, Sized, Tuple
from urllib.parse import quote

import grpc
from grpc import _server
from grpc._cython import cygrpc

from ...shm.message import ErrorCode
from ..errors import DeadlineExceeded, InternalError, ServerError, Unavailable, Unsupported
from .outgoing import COUNTED_BYTES, Outgoing

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 2**31 - 1
_DETAILS_BYTES = 7000
"""Clients take 8 KiB of trailers, in which what is not printable takes three bytes for one."""
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

_STATUS = {
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


def status_of(error: ServerError) -> grpc.StatusCode:
    """The status that a call with this error ends with."""
    return grpc.StatusCode.DEADLINE_EXCEEDED if isinstance(error, DeadlineExceeded) else _STATUS[error.code]


_Ended = Tuple[Any, Sequence[Callable[[], None]]]
"""What an event's function tells the server: the state of the call and its callbacks, if the call is over."""

_NO_MESSAGE = "the call requires exactly one request message."
_TOO_MANY_CALLS = "too many calls: try again later"
_ANY_NUMBER = 1 << 31
_THREADS_OF_LIBRARIES = 4

_RECEIVE = "receive_message"
_SEND = "send_message"


class Call:
    """One call, in either direction as far as it goes. Its methods may be used in any thread; what they call is called in the thread that
    takes events."""

    __slots__ = ("_event", "_state", "outgoing")

    def __init__(self, event: Any, state: Any, outgoing: Outgoing) -> None:
        self._event = event
        self._state = state
        self.outgoing = outgoing

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
        counts = len(message) >= COUNTED_BYTES

        def done(_event: Any) -> _Ended:
            if counts:
                self.outgoing.took(self)
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
            if counts:
                self.outgoing.put(self, len(message), time.monotonic())
            self._event.call.start_server_batch(operations, done)

    def finish(self, message: Optional[bytes] = None) -> None:
        """Ends the call well, with its one message if that is what it is to have. Once.

        Raises:
            ServerError: the message cannot be sent.
        """
        counts = message is not None and len(message) >= COUNTED_BYTES
        if message is not None and counts:
            if len(message) > MESSAGE_BYTES:
                raise too_large(len(message))
            self.outgoing.check(len(message))
        with self._state.condition:
            if _server._is_rpc_state_active(self._state):
                if message is not None and counts:
                    self._state.callbacks.append(partial(self.outgoing.took, self))
                    self.outgoing.put(self, len(message), time.monotonic())
                _server._status(self._event, self._state, message)

    def cut_off(self) -> None:
        """Ends the call at once, whatever of it is still on its way."""
        self._event.call.cancel(cygrpc.StatusCode.unavailable, "the client took nothing")

    def fail(self, error: ServerError) -> None:
        """Ends the call with an error, unless it has ended."""
        with self._state.condition:
            if not self._state.statused:
                self._state.code = status_of(error)
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
    """A handler that needs no thread, as the behaviour that grpcio is told of. ``kept``: how many calls there may be beyond the most."""

    __slots__ = ("kept", "start")

    def __init__(self, start: Callable[[Call], None], kept: int = 0) -> None:
        self.start = start
        self.kept = kept

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("grpcio called a handler itself that belongs to InlineExecutor")


def unary(handler: UnaryHandler, kept: int = 0) -> Any:
    """A method handler, of raw bytes, for calls with one message either way.

    Args:
        kept: how many calls there may be beyond the most that the server may have, so that these are answered when it has too many.
    """

    def start(call: Call) -> None:
        call.receive(lambda message: call.fail(Unsupported(_NO_MESSAGE)) if message is None else _guarded(handler, message, call))

    return grpc.unary_unary_rpc_method_handler(Inline(start, kept))


def stream(handler: StreamHandler) -> Any:
    """A method handler, of raw bytes, for calls with any number of messages either way."""

    def start(call: Call) -> None:
        try:
            handler(call)
        except ServerError as error:
            call.fail(error)

    return grpc.stream_stream_rpc_method_handler(Inline(start))


class InlineExecutor(ThreadPoolExecutor):
    """What grpcio's server is given for its handlers: runs ``Inline`` ones at once, and others, which are libraries' and keep their threads
    for as long as their clients like, in a few threads of their own. ``submit`` is also for what is to run in its many threads.

    ``bound`` tells it of the server, and how many calls the server may have at a time.

    Args:
        most_outgoing: bytes of answers that may wait to be taken.
    """

    def __init__(self, threads: int, name: str, most_outgoing: int) -> None:
        super().__init__(threads, name)
        self.outgoing = Outgoing(most_outgoing)
        self._of_libraries = ThreadPoolExecutor(_THREADS_OF_LIBRARIES, name + "-libraries")
        self._calls: Sized = ()
        self._most = 0

    def bound(self, server: grpc.Server, most_calls: int) -> None:
        self._calls = server._state.rpc_states
        self._most = most_calls or _ANY_NUMBER

    @property
    def calls(self) -> int:
        """How many are open."""
        return len(self._calls)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # From grpc._server: submit(state.context.run, _..._response_in_pool, rpc_event, state, behavior, ...)
        if len(args) > 3:
            _, event, state, behavior = args[:4]
            if type(behavior) is not Inline:
                return self._of_libraries.submit(fn, *args, **kwargs)
            call = Call(event, state, self.outgoing)
            if len(self._calls) < self._most + behavior.kept:
                behavior.start(call)
            else:
                call.fail(Unavailable(_TOO_MANY_CALLS))
            return _STARTED
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._of_libraries.shutdown(wait, cancel_futures=cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)


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
