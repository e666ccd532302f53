"""What traces of requests over HTTP have of their own (spec 6.10, recorded)."""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

from ..tracing.trace import Trace
from ..tracing.tracer import Tracer

RECV_START, RECV_END, SEND_START, SEND_END = "HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"


def begin_trace(tracer: Tracer, model: str, headers: Iterable[Tuple[bytes, bytes]]) -> Optional[Trace]:
    """The trace of a request whose head has arrived, if it is to have one."""
    trace = tracer.sample(model, lambda name: next((value.decode("latin-1") for field, value in headers if field == name.encode()), None))
    if trace is not None:
        trace.event(RECV_START)
    return trace
