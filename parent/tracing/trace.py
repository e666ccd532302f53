"""The trace of one request: who takes part in it tells it what happens, and when the last one lets go of it, it is written.

So a trace is whole whatever way its request ends, and nobody has to say that it has.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

from ...shm.cuda.segment import DeviceSegment
from ...shm.dtype import BY_CODE
from ..errors import ServerError
from ..parameters import with_trace
from ..request import Outcome, Request, Response
from .context import SpanContext
from .settings import Wanted

if TYPE_CHECKING:
    from ..servable import Servable

Token = Tuple[int, int, str]
"""A trace as a message has it: number, what is traced (``_TIMESTAMPS``, ``_TENSORS``) and the span's context as JSON, "" if it has none."""

_TIMESTAMPS, _TENSORS = 1, 2


class Event(NamedTuple):
    """``ns``: by the monotonic clock."""

    name: str
    ns: int


class TracedTensor(NamedTuple):
    """``data``: its bytes on the wire."""

    activity: str
    name: str
    dtype: str
    shape: Sequence[int]
    data: bytes


class Started(NamedTuple):
    """The request is known from here on."""

    model: str
    version: int
    request_id: str


class Record:
    """What a trace has come to know, in the order of ``entries``.

    ``parent``: the number of the trace of the request on whose behalf this one was made, 0 if a client made it. ``outer`` and ``span``:
    the span that is the request as the client sees it, and the one that is its execution by the model; None without OpenTelemetry.
    ``remote``: whose child the outermost of the two is.
    """

    __slots__ = ("entries", "error", "log_frequency", "number", "outer", "parent", "remote", "span")

    def __init__(self, number: int, parent: int, log_frequency: int) -> None:
        self.number = number
        self.parent = parent
        self.log_frequency = log_frequency
        self.entries: List[Union[Event, TracedTensor, Started]] = []
        self.error = ""
        """Why the request failed."""
        self.remote: Optional[SpanContext] = None
        self.outer: Optional[SpanContext] = None
        self.span: Optional[SpanContext] = None


class Trace:
    """Args:
    sink: takes the record when nobody holds the trace any more. In any thread.
    """

    __slots__ = ("_record", "_sink", "_wanted")

    def __init__(self, record: Record, wanted: Wanted, sink: Callable[[Record], None]) -> None:
        self._record = record
        self._wanted = wanted
        self._sink = sink

    def __del__(self) -> None:
        self._sink(self._record)

    @property
    def token(self) -> Token:
        """What the stub is told, and hands back with the requests that the model makes on behalf of this one."""
        record, wanted = self._record, self._wanted
        flags = (_TIMESTAMPS if wanted.timestamps else 0) | (_TENSORS if wanted.tensors else 0)
        return record.number, flags, record.span.as_json() if record.span else ""

    def event(self, name: str, ns: int = 0) -> None:
        """Something happened: at ``ns`` by the monotonic clock, or now."""
        if self._wanted.timestamps:
            self._record.entries.append(Event(name, ns or perf_counter_ns()))

    def submitted(self, model: Servable, request: Request) -> None:
        """The request, which is now on its way to the model."""
        request_id = request.extras[0] if request.extras else ""
        self._record.entries.append(Started(model.name, model.version, request_id))
        self.event("REQUEST_START", request.submitted_ns)
        self.event("QUEUE_START", request.submitted_ns)
        if self._wanted.tensors:
            self._record.entries += _inputs(model, request)
        request.extras = with_trace(request.extras, self.token)

    def settled(self, request: Request, outcome: Optional[Outcome], final: bool) -> None:
        """An outcome has arrived; it has not been handed on yet."""
        now = perf_counter_ns()
        if isinstance(outcome, ServerError):
            self._record.error = str(outcome)
        elif outcome is not None:
            if self._wanted.tensors:
                self._record.entries += _outputs(outcome)
            self.event("INFER_RESPONSE_COMPLETE", now)
        if final:
            if request.computed_ns:
                # Inputs are in shared memory before a request is handed to its instance.
                self.event("COMPUTE_START", request.begun_ns)
                self.event("COMPUTE_INPUT_END", request.begun_ns)
                self.event("COMPUTE_OUTPUT_START", request.computed_ns)
                self.event("COMPUTE_END", now)
            self.event("REQUEST_END", now)


def wanted_of(token: Token, log_frequency: int) -> Wanted:
    """What is traced of a request that is made on behalf of another."""
    return Wanted(bool(token[1] & _TIMESTAMPS), bool(token[1] & _TENSORS), log_frequency)


def _inputs(model: Servable, request: Request) -> List[TracedTensor]:
    """Copies of the inputs; those in shared memory of the client's, or on a GPU, without their bytes."""
    tensors = []
    for index, dtype, shape, number, offset, nbytes in request.inputs:
        data = b""
        block = request.blocks[number][0] if number < len(request.blocks) else None
        if block is not None and not isinstance(block.segment, DeviceSegment):
            start = block.offset + offset
            data = bytes(block.segment.memory[start : start + nbytes])
        tensors.append(TracedTensor("TENSOR_QUEUE_INPUT", model.inputs[index].name, BY_CODE[dtype].name, shape, data))
    return tensors


def _outputs(response: Response) -> List[TracedTensor]:
    return [
        TracedTensor("TENSOR_BACKEND_OUTPUT", output.name, output.dtype.name, output.shape, response.copy(output))
        for output in response.plan.outputs
    ]
