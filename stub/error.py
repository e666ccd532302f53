"""``TritonModelException``, ``TritonError``, and how an exception of a model is told."""

from __future__ import annotations

import os
import traceback
from typing import Callable

from ..shm.message import ErrorCode

_HERE = os.path.dirname(os.path.abspath(__file__))


class TritonModelException(Exception):
    """Raised by pb_utils when a model uses it wrongly; ``TypeError`` is raised for arguments of a wrong Python type (spec 1.1)."""


class TritonError:
    """An error for one request, to be put in its InferenceResponse. A value, not an exception (spec 1.8).

    Args:
        message: what the client will read.
        code: one of the class's constants, each mapped to an HTTP and a gRPC status.

    Raises:
        TypeError: ``message`` is not a str, or ``code`` not one of the constants.
    """

    __slots__ = ("_code", "_message")

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str):
            raise TypeError(f"TritonError: message must be str, not {type(message).__name__}")
        if not isinstance(code, ErrorCode):
            raise TypeError(f"TritonError: code must be one of TritonError's codes, not {type(code).__name__}")
        self._message = message
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> ErrorCode:
        return self._code

    def __repr__(self) -> str:
        return f"TritonError({self._message!r}, TritonError.{self._code.name})"


def headline(error: BaseException) -> str:
    """``ExcType: message``, which a client is always told."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def teller(expose_tracebacks: bool) -> Callable[[BaseException], str]:
    """How clients are told of an exception of the model."""
    return with_frames if expose_tracebacks else headline


def with_frames(error: BaseException) -> str:
    """The headline and the frames, innermost first, in the form that Triton's users know (spec 2.4)."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(type(error), error)).rstrip()
    lines = [f"  {frame.filename}({frame.lineno}): {frame.name}" for frame in reversed(frames)]
    return headline(error) + "\n\nAt:\n" + "\n".join(lines)


def _is_machinery(file: str) -> bool:
    """Whether a frame is the stub's own or the importer's, which tells nobody anything about the model."""
    return os.path.dirname(file) == _HERE or file.startswith("<frozen importlib")
