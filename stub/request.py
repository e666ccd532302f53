"""``pb_utils.InferenceRequest`` (spec 1.5)."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, List, Optional, Sequence, Set, Tuple, Union

from .error import TritonModelException
from .exchange import Exchange
from .host import host
from .preferred_memory import PreferredMemory
from .response import InferenceResponse, Parameters, expect, parameters_text
from .response_iterator import ResponseIterator
from .response_sender import InferenceResponseSender
from .tensor import Tensor
from .trace import InferenceTrace, Token

RELEASE_ALL, RELEASE_RESCHEDULE = 1, 2


class InferenceRequest:
    """One request of a client, or one that a model makes.

    Args:
        request_id: echoed in the response.
        correlation_id: of the sequence the request belongs to; an unsigned 64-bit integer or a str.
        inputs: the input tensors. Required.
        requested_output_names: the outputs wanted; an empty list means all. Required.
        model_name: the model to ask. Required.
        model_version: -1 lets the server choose.
        flags: TRITONSERVER_REQUEST_FLAG_SEQUENCE_START and _END.
        timeout: microseconds, 0 for none.
        preferred_memory: where the outputs should be: in CPU memory, or on that GPU if it has room; without it, they are where they were
            made.
        trace: what ``request.trace()`` of another request returned; this one becomes part of that trace.
        parameters: values of type bool, int or str.

    Raises:
        TypeError: an argument of a wrong Python type, or None.
        TritonModelException: an empty tensor or name in a list, or parameters of a wrong type.
    """

    __slots__ = (
        "__weakref__", "_correlation_id", "_exchange", "_flags", "_inputs", "_model_name", "_model_version", "_parameters", "_preferred_memory",
        "_request_id", "_requested", "_sender", "_timeout", "_trace",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str = "",
        correlation_id: Union[int, str] = 0,
        inputs: Optional[Sequence[Tensor]] = None,
        requested_output_names: Optional[Sequence[str]] = None,
        model_name: Optional[str] = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: Optional[PreferredMemory] = None,
        trace: Optional[InferenceTrace] = None,
        parameters: Optional[Parameters] = None,
    ) -> None:
        expect("InferenceRequest", "request_id", request_id, str)
        expect("InferenceRequest", "model_name", model_name, str)
        if preferred_memory is not None:
            expect("InferenceRequest", "preferred_memory", preferred_memory, PreferredMemory)
        if trace is not None:
            expect("InferenceRequest", "trace", trace, InferenceTrace)
        expect("InferenceRequest", "inputs", inputs, (list, tuple))
        expect("InferenceRequest", "requested_output_names", requested_output_names, (list, tuple))
        assert inputs is not None and requested_output_names is not None and model_name is not None
        if correlation_id is None:
            raise TypeError("InferenceRequest: correlation_id must not be None")
        if not isinstance(correlation_id, (int, str)):
            raise TritonModelException("Correlation ID must be integer or string")
        about = f"for request with id '{request_id}' and model name '{model_name}'"
        for tensor in inputs:
            if tensor is None:
                raise TritonModelException(f"Input tensor {about} should not be empty.")
            expect("InferenceRequest", "inputs", tensor, Tensor)
        for name in requested_output_names:
            expect("InferenceRequest", "requested_output_names", name, str)
            if not name:
                raise TritonModelException(f"Requested output name {about} should not be empty.")
        self._request_id = request_id
        self._correlation_id = correlation_id if isinstance(correlation_id, str) else _number("correlation_id", correlation_id, 0, 2**64)
        self._inputs = list(inputs)
        self._requested = set(requested_output_names)
        self._model_name = model_name
        self._model_version = _number("model_version", model_version, -(2**63), 2**63)
        self._flags = _number("flags", flags, 0, 2**32)
        self._timeout = _number("timeout", timeout, 0, 2**64)
        self._parameters = parameters_text(parameters)
        self._preferred_memory = preferred_memory
        self._trace = trace
        self._exchange: Optional[Exchange] = None
        self._sender: Optional[InferenceResponseSender] = None

    @classmethod
    def _received(
        cls,
        inputs: List[Tensor],
        exchange: Exchange,
        request_id: str = "",
        parameters: str = "{}",
        correlation_id: Union[int, str] = 0,
        flags: int = 0,
        timeout: int = 0,
        trace: Optional[Token] = None,
    ) -> InferenceRequest:
        """A request as it came from the server, which has checked it."""
        request = cls.__new__(cls)
        request._inputs = inputs
        request._request_id = request_id
        request._requested = exchange.wanted
        request._parameters = parameters
        request._correlation_id = correlation_id
        request._flags = flags
        request._timeout = timeout
        request._exchange = exchange
        request._sender = None
        request._trace = None if trace is None else InferenceTrace._received(trace)
        return request

    def _extras(self) -> Tuple[Any, ...]:
        """What the message of a call says of the request beside its inputs."""
        extras = (self._request_id, self._parameters, self._correlation_id, self._flags, self._timeout)
        token = self._trace._token if self._trace is not None else None
        return extras if token is None else (*extras, token)

    def _callee(self) -> Tuple[str, int]:
        """The model that it is for, by name and version."""
        return self._model_name, self._model_version

    def inputs(self) -> List[Tensor]:
        """The inputs that are present, in the order of the configuration."""
        return self._inputs

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> Union[int, str]:
        return self._correlation_id

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = _number("flags", flags, 0, 2**32)

    def timeout(self) -> int:
        """The client's timeout in microseconds, 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """The request's parameters as JSON **text**, "{}" when there are none."""
        return self._parameters

    def requested_output_names(self) -> Set[str]:
        """The outputs that the client asked for; all outputs of the model when it asked for none. The set is the caller's own."""
        return set(self._requested)

    def trace(self) -> InferenceTrace:
        """The trace that the request belongs to, for the requests that the model makes on its behalf."""
        if self._trace is None:
            self._trace = InferenceTrace()
        return self._trace

    def get_response_sender(self) -> InferenceResponseSender:
        """What sends this request's responses; the same object at each call. Every send on a request that the model made fails."""
        if self._sender is None:
            self._sender = InferenceResponseSender(self._exchange)
        return self._sender

    def is_cancelled(self) -> bool:
        """Whether the client gave up. A read of shared memory; once True it stays so."""
        return self._exchange is not None and self._exchange.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        """What becomes of the request when ``execute`` has returned (spec 2.8).

        Args:
            flags: TRITONSERVER_REQUEST_RELEASE_ALL, or TRITONSERVER_REQUEST_RELEASE_RESCHEDULE to get it again in a later batch.

        Raises:
            TypeError: not an int.
            TritonModelException: neither of the two.
        """
        expect("InferenceRequest", "flags", flags, int)
        if flags not in (RELEASE_ALL, RELEASE_RESCHEDULE):
            raise TritonModelException(f"Invalid release flags {flags}: they are RELEASE_ALL (1) or RELEASE_RESCHEDULE (2).")
        if self._exchange is not None:
            self._exchange.reschedule = flags == RELEASE_RESCHEDULE

    def exec(self, decoupled: bool = False) -> Union[InferenceResponse, ResponseIterator]:
        """Sends the request to its model and waits for the response. In any thread, and in processes that the model forked.

        What goes wrong is an error in the response (spec 3.2).

        Args:
            decoupled: take any number of responses; returns an iterator at once.

        Raises:
            TritonModelException: called outside of ``execute``, such as in ``initialize``.
        """
        response: Union[InferenceResponse, ResponseIterator] = host.caller.execute(self, bool(decoupled))
        return response

    def async_exec(self, decoupled: bool = False) -> Awaitable[Union[InferenceResponse, ResponseIterator]]:
        """``exec`` for a coroutine; see there.

        Raises:
            RuntimeError: no event loop runs in this thread.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Union[InferenceResponse, ResponseIterator]] = host.caller.execute_async(self, bool(decoupled), loop)
        return future


def _number(what: str, value: int, least: int, end: int) -> int:
    """The argument as a plain integer, which is what travels: True is an int too.

    Raises:
        TypeError: it is none, or too large or too small to travel.
    """
    expect("InferenceRequest", what, value, int)
    if not least <= value < end:
        raise TypeError(f"InferenceRequest: {what} must be at least {least} and less than {end}; got {value}")
    return int(value)
