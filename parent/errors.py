"""The one taxonomy of errors: each class is one Triton error code, and so one HTTP and one gRPC status (spec 6.3)."""

from __future__ import annotations

from typing import ClassVar

from ..shm.message import ErrorCode


class ServerError(Exception):
    """Base of what a client, or the caller of the embedded server, can be told. The text is for them, without names or paths of ours."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    http_status: ClassVar[int] = 500


class UnknownError(ServerError):
    """A model answered with TritonError.UNKNOWN."""

    code = ErrorCode.UNKNOWN
    http_status = 400


class InternalError(ServerError):
    """The server or a model failed; the request may have been good. The log says more."""

    code = ErrorCode.INTERNAL
    http_status = 500


class NotFound(ServerError):
    """No model, or version of it, of that name."""

    code = ErrorCode.NOT_FOUND
    http_status = 404


class InvalidArgument(ServerError):
    """The request is wrong: correct what the text names and send it again."""

    code = ErrorCode.INVALID_ARG
    http_status = 400


class Unavailable(ServerError):
    """Not now: no room, no live instance, or the server is ending. Try again later."""

    code = ErrorCode.UNAVAILABLE
    http_status = 503


class DeadlineExceeded(Unavailable):
    """The model took longer than its ``execute_timeout``. Triton's codes have none for that: a model that called it sees UNAVAILABLE."""

    http_status = 504


class Unsupported(ServerError):
    """This server, or this model, does not do that."""

    code = ErrorCode.UNSUPPORTED
    http_status = 501


class AlreadyExists(ServerError):
    """A model answered with TritonError.ALREADY_EXISTS."""

    code = ErrorCode.ALREADY_EXISTS
    http_status = 400


class Cancelled(ServerError):
    """The request was cancelled before it was answered."""

    code = ErrorCode.CANCELLED
    http_status = 400


BY_CODE = {
    kind.code: kind for kind in (UnknownError, InternalError, NotFound, InvalidArgument, Unavailable, Unsupported, AlreadyExists, Cancelled)
}
