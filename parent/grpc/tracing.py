"""What traces of requests over gRPC have of their own (spec 6.10, recorded)."""

from __future__ import annotations

from typing import Optional

from ..tracing.trace import Trace
from ..tracing.tracer import Tracer
from .inline import Call

READ_START, READ_END, SEND_START, SEND_END = "GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"


def begin_trace(tracer: Tracer, model: str, call: Call) -> Optional[Trace]:
    """The trace of a request whose message has arrived, if it is to have one."""
    trace = tracer.sample(model, call.metadata.get)
    if trace is not None:
        trace.event(READ_START)
    return trace
