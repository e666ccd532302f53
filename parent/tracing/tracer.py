"""Decides which requests are traced, and starts their traces."""

from __future__ import annotations

import itertools
from typing import Callable, Optional, Protocol

from ..options import OptionError
from .context import SpanContext
from .file import TraceFile
from .options import OPENTELEMETRY, TraceOptions
from .settings import TraceSettings, Wanted
from .trace import Record, Token, Trace, wanted_of

Header = Callable[[str], Optional[str]]
"""The value of a header field of a request, whose name is given in lower case."""


class Sink(Protocol):
    """Where traces go. To be started before something is put; what is put after it was closed is lost. In any thread."""

    def start(self) -> None: ...

    def put(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Tracer:
    """``settings`` may change at any time. All methods may be called in any thread.

    Raises:
        OptionError: mode opentelemetry, and its library is not installed.
    """

    def __init__(self, options: TraceOptions) -> None:
        self.settings = TraceSettings(options)
        self._propagates = options.mode == OPENTELEMETRY
        self._numbers = itertools.count(1)
        self._sink: Sink = _spans(options) if self._propagates else TraceFile(options.file)

    @property
    def active(self) -> bool:
        """Whether any request may be traced; else there is no need to ask."""
        return self.settings.active

    def sample(self, model: str, header: Optional[Header] = None) -> Optional[Trace]:
        """The trace of a client's request, if it is to have one. With OpenTelemetry, a request that is part of a sampled trace has."""
        remote = None
        if self._propagates and header is not None:
            remote = SpanContext.parse(header("traceparent") or "", header("tracestate") or "")
        wanted = self.settings.sample(model, remote is not None and remote.sampled)
        if wanted is None:
            return None
        record = Record(next(self._numbers), 0, wanted.log_frequency)
        if self._propagates:
            record.remote = remote
            record.outer = SpanContext.child_of(remote)
            record.span = SpanContext.child_of(record.outer)
        return self._trace(record, wanted)

    def child(self, token: Token, model: str) -> Optional[Trace]:
        """The trace of a request to ``model`` that another makes on behalf of one whose trace is ``token``; None if nothing is traced any
        more."""
        if not self.active:
            return None
        wanted = wanted_of(token, self.settings.log_frequency(model))
        record = Record(next(self._numbers), token[0], wanted.log_frequency)
        if self._propagates:
            record.remote = SpanContext.of_json(token[2])
            record.span = SpanContext.child_of(record.remote)
        return self._trace(record, wanted)

    def close(self) -> None:
        """Writes what there is to be written."""
        self._sink.close()

    def _trace(self, record: Record, wanted: Wanted) -> Trace:
        self._sink.start()
        return Trace(record, wanted, self._sink.put)


def _spans(options: TraceOptions) -> Sink:
    try:
        from .spans import Spans  # takes long to import
    except ImportError as error:
        raise OptionError(f"--trace-config mode={OPENTELEMETRY} needs more: pip install 'stublet[opentelemetry]' ({error})") from error
    return Spans(options)
