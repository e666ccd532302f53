"""The server: model repository, schedulers, supervision of stubs, HTTP front end, command line, and the embedded ``Server``.

Its names are imported when they are first used: the command line starts the fork server before anything that takes long to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Dict

if TYPE_CHECKING:
    from .arrays import InferResult
    from .errors import (
        AlreadyExists,
        Cancelled,
        DeadlineExceeded,
        InternalError,
        InvalidArgument,
        NotFound,
        ServerError,
        Unavailable,
        UnknownError,
        Unsupported,
    )
    from .infer_stream import InferStream
    from .instance import LoadFailed
    from .options import ServerOptions
    from .repository import RepositoryError
    from .server import Server

_HOMES: Dict[str, str] = {
    **dict.fromkeys(
        [
            "AlreadyExists", "Cancelled", "DeadlineExceeded", "InternalError", "InvalidArgument", "NotFound", "ServerError", "Unavailable",
            "UnknownError", "Unsupported",
        ],
        ".errors",
    ),
    "InferResult": ".arrays",
    "InferStream": ".infer_stream",
    "LoadFailed": ".instance",
    "RepositoryError": ".repository",
    "Server": ".server",
    "ServerOptions": ".options",
}  # fmt: skip

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "DeadlineExceeded",
    "InferResult",
    "InferStream",
    "InternalError",
    "InvalidArgument",
    "LoadFailed",
    "NotFound",
    "RepositoryError",
    "Server",
    "ServerError",
    "ServerOptions",
    "Unavailable",
    "UnknownError",
    "Unsupported",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
