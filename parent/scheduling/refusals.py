"""What is told of requests that a scheduler refuses, as Triton says it."""

from __future__ import annotations

from typing import Hashable

from ..errors import Cancelled, InvalidArgument, ServerError, Unavailable
from ..request import Request
from .scheduler import Reason


def refusal_of(request: Request, reason: Reason, model: str, lost: str = "") -> ServerError:
    """The error of a request to a model.

    Args:
        lost: why the instance is gone that had its sequence.
    """
    if reason is Reason.NO_START:
        return InvalidArgument(missing_start(request.extras[3], model))
    if reason is Reason.SEQUENCE_EXPIRED:
        return Unavailable(reason.value)
    if reason is Reason.CANCELLED:
        return Cancelled(f"the request was cancelled before it was executed: {reason.value}")
    if reason is Reason.LOST:
        return Unavailable(lost or reason.value)
    request_id = request.extras[0] if request.extras and request.extras[0] else "<id_unknown>"
    return Unavailable(f"[request id: {request_id}] {reason.value}")


def missing_start(sequence: Hashable, model: str) -> str:
    """What is told of a request that should begin a sequence."""
    return f"inference request for sequence {sequence} to model '{model}' {Reason.NO_START.value}"
