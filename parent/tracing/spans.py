"""Traces as spans of OpenTelemetry, sent to an OTLP collector, with the names and attributes that Triton gives them (spec 6.10, recorded).

A request of a client is the span ``InferRequest``; within it lies one with the model's name, and in that one ``compute`` and the requests
that the model makes.
"""

from __future__ import annotations

import threading
import time
from time import perf_counter_ns
from typing import Any, List, Optional

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState, set_span_in_context

from .context import SpanContext as Context
from .options import TraceOptions
from .trace import Event, Record, Started

_SERVICE = "triton-inference-server"
_SCOPE = "triton-server"
_REQUEST = "InferRequest"
_COMPUTE = "compute"
_OF_MODEL = ("REQUEST_START", "QUEUE_START", "REQUEST_END")
_OF_COMPUTE = "COMPUTE_"
_CLOSE_SECONDS = 5.0


class _Ids(IdGenerator):
    """Gives spans the identifiers that they were promised when their requests began."""

    def __init__(self) -> None:
        self.next: Context = Context("", "")

    def generate_span_id(self) -> int:
        return int(self.next.span_id, 16)

    def generate_trace_id(self) -> int:
        return int(self.next.trace_id, 16)


class Spans:
    """Converts and queues them; the processor sends them in a thread of its own, and drops them when the queue is full."""

    def __init__(self, options: TraceOptions) -> None:
        resource = Resource.create({SERVICE_NAME: _SERVICE, **dict(one.split("=", 1) for one in options.resource)})
        self._ids = _Ids()
        self._lock = threading.Lock()
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=options.url),
                max_queue_size=options.bsp_max_queue_size,
                schedule_delay_millis=options.bsp_schedule_delay,
                max_export_batch_size=options.bsp_max_export_batch_size,
            )
        )
        self._tracer = self._provider.get_tracer(_SCOPE)

    def start(self) -> None:
        """Nothing is to be done: the processor's thread runs from the beginning."""

    def put(self, record: Record) -> None:
        """Queues the spans of a trace."""
        since_epoch = time.time_ns() - perf_counter_ns()
        events = [Event(entry.name, entry.ns + since_epoch) for entry in record.entries if isinstance(entry, Event)]
        if not events:
            return
        start, end = min(event.ns for event in events), max(event.ns for event in events)
        outer, model, compute = _divided(events, record.outer is None)
        started = next((entry for entry in record.entries if isinstance(entry, Started)), None)
        with self._lock:
            if record.outer is not None:
                self._span(_REQUEST, SpanKind.SERVER, record.outer, record.remote, outer, start, end, record.error)
            if started is not None and model:
                ends = model[0].ns, model[-1].ns
                parent = record.outer or record.remote
                self._span(started.model, SpanKind.INTERNAL, record.span, parent, model, *ends, record.error, _attributes(record, started))
            if compute:
                own = Context.child_of(record.span)
                self._span(_COMPUTE, SpanKind.INTERNAL, own, record.span, compute, compute[0].ns, compute[-1].ns)

    def close(self) -> None:
        """Sends what is queued, unless that takes long."""
        closing = threading.Thread(target=self._provider.shutdown, name="trace export", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)

    def _span(
        self,
        name: str,
        kind: SpanKind,
        own: Optional[Context],
        parent: Optional[Context],
        events: List[Event],
        start: int,
        end: int,
        error: str = "",
        attributes: Any = None,
    ) -> None:
        assert own is not None
        self._ids.next = own
        around = set_span_in_context(NonRecordingSpan(_remote(parent))) if parent else None
        span = self._tracer.start_span(name, around, kind, attributes, start_time=start)
        for event in events:
            span.add_event(event.name, timestamp=event.ns)
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end(end)


def _divided(events: List[Event], one: bool) -> tuple[List[Event], List[Event], List[Event]]:
    """The events of the request, of its model's span and of ``compute``; ``one``: the first two are the same."""
    compute = [event for event in events if event.name.startswith(_OF_COMPUTE)]
    rest = [event for event in events if not event.name.startswith(_OF_COMPUTE)]
    if one:
        return [], rest, compute
    return [event for event in rest if event.name not in _OF_MODEL], [event for event in rest if event.name in _OF_MODEL], compute


def _attributes(record: Record, started: Started) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "triton.model_name": started.model,
        "triton.model_version": started.version,
        "triton.trace_id": record.number,
        "triton.trace_parent_id": record.parent,
    }
    if started.request_id:
        attributes["triton.request_id"] = started.request_id
    return attributes


def _remote(context: Context) -> SpanContext:
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), True, TraceFlags(TraceFlags.SAMPLED), state)
