"""W3C Trace Context."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.tracing.context import SpanContext

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEX = "0123456789abcdef"


def test_parts() -> None:
    assert SpanContext.parse(f"00-{TRACE}-{SPAN}-01", "a=b,c=d") == SpanContext(TRACE, SPAN, True, "a=b,c=d")
    assert SpanContext.parse(f"00-{TRACE}-{SPAN}-00") == SpanContext(TRACE, SPAN, False)
    assert SpanContext.parse(f"00-{TRACE}-{SPAN}-03") == SpanContext(TRACE, SPAN, True), "flags of later versions"
    assert SpanContext.parse(f"cc-{TRACE}-{SPAN}-01-more") == SpanContext(TRACE, SPAN), "a later version may have more"
    assert SpanContext.parse(f"00-{TRACE}-{SPAN}-01", "x=" + 511 * "y") == SpanContext(TRACE, SPAN), "a state that is too long"


@pytest.mark.parametrize(
    "traceparent",
    [
        "", "x", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-01-more", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE[1:]}-{SPAN}-01", f" 00-{TRACE}-{SPAN}-01",
    ],
)  # fmt: skip
def test_what_is_malformed_is_ignored(traceparent: str) -> None:
    assert SpanContext.parse(traceparent) is None


@given(st.text(HEX, min_size=32, max_size=32), st.text(HEX, min_size=16, max_size=16), st.booleans(), st.text(max_size=20))
def test_as_json_and_back(trace: str, span: str, sampled: bool, state: str) -> None:
    context = SpanContext(trace, span, sampled, state)
    real = bool(int(trace, 16) and int(span, 16))
    assert SpanContext.of_json(context.as_json()) == (context if real else None)


@given(
    st.one_of(
        st.text(), st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)).map(json.dumps)
    )
)
def test_what_a_model_made_of_it(text: str) -> None:
    assert SpanContext.of_json(text) is None


@pytest.mark.parametrize("text", ['{"traceparent":1}', "[]", "null", '{"traceparent":"x","tracestate":3}'])
def test_json_of_another_form(text: str) -> None:
    assert SpanContext.of_json(text) is None


def test_children() -> None:
    parent = SpanContext(TRACE, SPAN, False, "a=b")
    child = SpanContext.child_of(parent)
    assert (child.trace_id, child.sampled, child.state) == (TRACE, True, "a=b") and child.span_id != SPAN
    first, second = SpanContext.child_of(None), SpanContext.child_of(None)
    assert first.trace_id != second.trace_id and first.sampled
    assert SpanContext.of_json(first.as_json()) == first
