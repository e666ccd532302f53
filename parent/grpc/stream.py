"""``ModelStreamInfer``: any number of requests, each with any number of responses (spec 6.7).

Responses to requests of models that are not decoupled are sent in the order of the requests; those of one request of a decoupled model in
the order in which it sent them. One at a time is on its way to the client, and the others stay in shared memory until then. How much waits
for a client that reads slowly is bounded: past that, no more requests are taken, and models that send more have to wait (``Backlog``).
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import Any, Callable, Deque, List, Mapping, Optional, Set, Tuple

from ..backlog import Backlog
from ..core import Core
from ..errors import ServerError, Unavailable
from ..parameters import with_custom
from ..request import Outcome, Request, drop
from ..servable import Servable
from ..tracing.trace import Trace
from .infer import GrpcCodec, Plan, encode, encode_empty, parts_of
from .inline import MESSAGE_BYTES, Call, internal, too_large
from .messages import pb
from .outgoing import COUNTED_BYTES
from .tracing import READ_END, SEND_END, SEND_START, begin_trace
from .wire import prefix

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."

ENDS_WITH_ERROR = "triton_grpc_error"
_INFER_RESPONSE = 2
_MOST_UNFINISHED = 1024
"""From so many requests and responses on that are not finished, no more requests are taken from a stream."""

_FINAL_RESPONSE = "triton_final_response"


def _final_parameter(final: bool) -> bytes:
    message = pb.ModelInferResponse()
    message.parameters[_FINAL_RESPONSE].bool_param = final
    return bytes(message.SerializeToString())


_FINAL = {final: _final_parameter(final) for final in (False, True)}


class _Asked:
    """One request of a stream."""

    __slots__ = (
        "backlog",
        "decoupled",
        "empty_final",
        "model",
        "model_name",
        "outcome",
        "plan",
        "request",
        "request_id",
        "stream",
        "trace",
    )

    def __init__(self, stream: InferStream) -> None:
        self.stream = stream
        self.request_id = ""
        self.model_name = ""
        self.decoupled = False
        self.empty_final = False
        self.model: Optional[Servable] = None
        self.plan: Optional[Plan] = None
        self.request: Optional[Request] = None
        self.backlog: Optional[Backlog] = None
        """Of a decoupled model."""
        self.outcome: Optional[Outcome] = None
        """Of a model that is not decoupled, until those before it have theirs."""
        self.trace: Optional[Trace] = None

    def settle(self, outcome: Optional[Outcome], final: bool) -> None:
        """Takes an outcome. In any thread."""
        self.stream.settle(self, outcome, final)


class InferStream:
    """One call of ``ModelStreamInfer``.

    Args:
        forwarded: parameters that each request gets.
        on_over: called with the stream when it is over.
    """

    def __init__(
        self, core: Core, codec: GrpcCodec, call: Call, forwarded: Mapping[str, str], on_over: Callable[[InferStream], None]
    ) -> None:
        self._core = core
        self._codec = codec
        self._call = call
        self._forwarded = forwarded
        self._on_over = on_over
        self._draining = False
        self._lock = threading.Lock()
        self._open: Set[_Asked] = set()
        self._ordered: Deque[_Asked] = deque()
        self._out: Deque[Tuple[_Asked, Optional[Outcome], bool]] = deque()
        self._sending = False
        self._half_closed = False
        self._paused = False
        self._ended = False
        self._ends_with_error = call.metadata.get(ENDS_WITH_ERROR) == "true"
        call.on_end(self._on_end)
        call.receive(self._on_message)

    def settle(self, asked: _Asked, outcome: Optional[Outcome], final: bool) -> None:
        """Takes an outcome of a request. In any thread."""
        if final:
            asked.request = None  # the two hold each other
        with self._lock:
            if self._ended or (asked.decoupled and asked not in self._open):
                drop(outcome)
                return
            if asked.decoupled:
                if asked.backlog is not None:
                    asked.backlog.put(outcome)
                self._out.append((asked, outcome, final))
                if final:
                    self._open.discard(asked)
            else:
                asked.outcome = outcome
                while self._ordered and self._ordered[0].outcome is not None:
                    first = self._ordered.popleft()
                    self._out.append((first, first.outcome, True))
                    self._open.discard(first)
        self._send_next()
        self._read_on()

    def drain(self) -> None:
        """Takes no more requests, and ends the call when those that it has are done. In any thread."""
        with self._lock:
            self._draining = True
        self._send_next()

    def _on_message(self, message: Optional[bytes]) -> None:
        if message is None:
            with self._lock:
                self._half_closed = True
            self._send_next()
            return
        asked = _Asked(self)
        try:
            self._ask(asked, message)
        except ServerError as error:
            with self._lock:
                if asked not in self._open:
                    self._open.add(asked)
                    self._ordered.append(asked)
            asked.settle(error, True)
        with self._lock:
            self._paused = self._unfinished() > _MOST_UNFINISHED
            if self._paused:
                return
        self._call.receive(self._on_message)

    def _unfinished(self) -> int:
        """Requests without their last response, and responses that are not sent."""
        return len(self._open) + len(self._out)

    def _read_on(self) -> None:
        """Takes requests again if there were too many."""
        with self._lock:
            if not self._paused or self._ended or self._unfinished() > _MOST_UNFINISHED // 2:
                return
            self._paused = False
        self._call.receive(self._on_message)

    def _ask(self, asked: _Asked, message: bytes) -> None:
        parts = parts_of(message)
        asked.request_id = parts.request_id
        head = self._codec.head(parts)
        asked.model_name, asked.empty_final = head.name, head.empty_final
        if self._draining:
            raise Unavailable(SHUTTING_DOWN)
        self._call.outgoing.check()
        model = asked.model = self._core.find(head.name, head.version)
        asked.plan = self._codec.plan(model, head, parts)
        if self._core.tracer.active:
            asked.trace = begin_trace(self._core.tracer, model.name, self._call)
        request = asked.request = self._codec.request(asked.plan, parts, asked.settle)
        if self._forwarded:
            request.extras = with_custom(request.extras, self._forwarded)
        if model.decoupled:
            asked.backlog = Backlog(model, partial(self._give_up, asked))
            asked.backlog.attach(request)
        if asked.trace is not None:
            asked.trace.event(READ_END)
            request.trace = asked.trace
        with self._lock:
            asked.decoupled = model.decoupled
            self._open.add(asked)
            if not asked.decoupled:
                self._ordered.append(asked)
        model.submit(request)

    def _send_next(self) -> None:
        """Sends what is next, unless something is on its way; ends the call when all is done."""
        while True:
            with self._lock:
                if self._sending or self._ended:
                    return
                if not self._out:
                    if self._open or not (self._half_closed or self._draining):
                        return
                    self._ended = True
                    break
                asked, outcome, final = self._out.popleft()
                self._sending = True
            if asked.backlog is not None:
                asked.backlog.took(outcome)
            if isinstance(outcome, ServerError) and self._ends_with_error:
                self._end_with(outcome)
                return
            if asked.trace is not None:
                asked.trace.event(SEND_START)
            message = self._encode(asked, outcome, final)
            if message is not None:
                self._call.send(message, self._on_sent)
                if asked.trace is not None:
                    asked.trace.event(SEND_END)
                return
            with self._lock:
                self._sending = False
        if self._half_closed:
            self._call.finish()
        else:
            self._call.fail(Unavailable(SHUTTING_DOWN))

    def _on_sent(self) -> None:
        with self._lock:
            self._sending = False
        self._send_next()
        self._read_on()

    def _encode(self, asked: _Asked, outcome: Optional[Outcome], final: bool) -> Optional[bytes]:
        """A serialized ``ModelStreamInferResponse``; None if there is nothing to be said."""
        if isinstance(outcome, ServerError):
            return _encode_error(asked, outcome, final)
        if outcome is None:
            if not asked.empty_final:
                return None
            assert asked.model is not None
            return _join(encode_empty(asked.model, asked.request_id, _FINAL[True]))
        assert asked.plan is not None
        try:
            message = _join(encode(asked.plan, asked.request_id, outcome, _FINAL[final]))
            if len(message) > MESSAGE_BYTES:
                raise too_large(len(message))
            if len(message) >= COUNTED_BYTES:
                self._call.outgoing.check(len(message))
            return message
        except Exception as error:
            return _encode_error(asked, error if isinstance(error, ServerError) else internal(error), final)
        finally:
            outcome.release()

    def _end_with(self, error: ServerError) -> None:
        """The client wants the first error to be the end."""
        with self._lock:
            self._ended = True
        self._call.fail(error)

    def _give_up(self, asked: _Asked, error: ServerError) -> None:
        """The client takes nothing."""
        request = asked.request
        asked.settle(error, True)
        if request is not None and asked.model is not None:
            asked.model.cancel(request)

    def _on_end(self) -> None:
        """The call is over; if the client gave it up, so are its requests."""
        self._on_over(self)
        with self._lock:
            self._ended = True
            left, self._open = self._open, set()
            unsent = [outcome for _, outcome, _ in self._out] + [asked.outcome for asked in self._ordered]
            self._out.clear()
            self._ordered.clear()
        for outcome in unsent:
            drop(outcome)
        for asked in left:
            if asked.backlog is not None:
                asked.backlog.close()
            if asked.model is not None and asked.request is not None:
                asked.model.cancel(asked.request)


def _join(pieces: List[Any]) -> bytes:
    return b"".join([prefix(_INFER_RESPONSE, sum([len(piece) for piece in pieces])), *pieces])


def _encode_error(asked: _Asked, error: ServerError, final: bool) -> bytes:
    message = pb.ModelStreamInferResponse(error_message=str(error))
    message.infer_response.id = asked.request_id
    message.infer_response.model_name = asked.model_name
    message.infer_response.parameters[_FINAL_RESPONSE].bool_param = final
    return bytes(message.SerializeToString())
