"""The server: model repository, schedulers, supervision of stubs, HTTP front end, command line, and the embedded ``Server``."""

from .errors import (
    AlreadyExists,
    Cancelled,
    InternalError,
    InvalidArgument,
    NotFound,
    ServerError,
    Unavailable,
    UnknownError,
    Unsupported,
)
from .server import InferResult, Server

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "InferResult",
    "InternalError",
    "InvalidArgument",
    "NotFound",
    "Server",
    "ServerError",
    "Unavailable",
    "UnknownError",
    "Unsupported",
]
