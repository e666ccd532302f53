"""``InferenceTrace``: what ``request.trace()`` returns, to be handed on to the requests that a model makes (spec 1.5)."""

from __future__ import annotations

from typing import Optional


class InferenceTrace:
    """The trace that a request belongs to; without a context when the client sent none.

    Args:
        context: OpenTelemetry's propagated fields as JSON text.
    """

    __slots__ = ("_context",)

    def __init__(self, context: Optional[str] = None) -> None:
        self._context = context

    def get_context(self) -> Optional[str]:
        """OpenTelemetry's propagated fields as JSON text, or None."""
        return self._context
