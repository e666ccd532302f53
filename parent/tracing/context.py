"""What a request is part of, as it travels in headers: W3C Trace Context (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import json
import re
import secrets
from typing import NamedTuple, Optional

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1
_MOST_STATE = 512
"""Characters of a ``tracestate``; a longer one need not be passed on."""


class SpanContext(NamedTuple):
    """One span, for those that are to be its children: identifiers as hexadecimal digits, 32 and 16 of them."""

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""

    @classmethod
    def parse(cls, traceparent: str, tracestate: str = "") -> Optional[SpanContext]:
        """That of two header fields; None if there is none, or it is malformed, which is to be ignored."""
        found = _TRACEPARENT.fullmatch(traceparent)
        if found is None or (found[1] == "00" and found[5]):
            return None
        return cls(found[2], found[3], bool(int(found[4], 16) & _SAMPLED), tracestate if len(tracestate) <= _MOST_STATE else "")

    @classmethod
    def of_json(cls, text: str) -> Optional[SpanContext]:
        """That of what ``as_json`` made, and a model may have changed."""
        try:
            fields = json.loads(text)
            return cls.parse(fields["traceparent"], fields.get("tracestate", ""))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @classmethod
    def child_of(cls, parent: Optional[SpanContext]) -> SpanContext:
        """A new span, of the same trace as its parent, or of a new one."""
        if parent is None:
            return cls(secrets.token_hex(16), secrets.token_hex(8))
        return cls(parent.trace_id, secrets.token_hex(8), True, parent.state)

    def as_json(self) -> str:
        """The header fields as a JSON object."""
        fields = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"}
        if self.state:
            fields["tracestate"] = self.state
        return json.dumps(fields, separators=(",", ":"))
