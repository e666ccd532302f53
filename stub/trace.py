"""``InferenceTrace``: what ``request.trace()`` returns, to be handed on to the requests that a model makes (spec 1.5)."""

from __future__ import annotations

from typing import Optional, Tuple

Token = Tuple[int, int, str]
"""A trace as a message has it."""


class InferenceTrace:
    """The trace that a request belongs to; an empty one, of which no part is made, when it is not traced.

    Args:
        context: OpenTelemetry's propagated fields as JSON text.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, context: Optional[str] = None) -> None:
        self._context = context
        self._token: Optional[Token] = None

    @classmethod
    def _received(cls, token: Token) -> InferenceTrace:
        trace = cls(token[2] or None)
        trace._token = token
        return trace

    def get_context(self) -> Optional[str]:
        """OpenTelemetry's propagated fields as JSON text, or None if the request is not traced, or not with OpenTelemetry."""
        return self._context
