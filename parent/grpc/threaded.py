"""Calls that are answered in a thread, but wait for their message without one: else 64 clients that send none would hold up all others."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Callable

from google.protobuf.message import DecodeError

from ..errors import InternalError, ServerError
from .inline import Call, UnaryHandler, internal


def threaded(pool: Executor, method: Callable[[Any, Any], Any], message_type: Any) -> UnaryHandler:
    """A handler for ``inline.unary``, of a servicer's method, which may block, and raise what the client is to be told.

    Args:
        method: takes a message of ``message_type`` and a context, which is None; returns the message that is the answer.
    """

    def run(message: bytes, call: Call) -> None:
        try:
            answer = method(message_type.FromString(message), None)
        except ServerError as error:
            call.fail(error)
        except DecodeError:
            call.fail(InternalError("Exception deserializing request!"))
        except Exception as error:
            call.fail(internal(error))
        else:
            call.finish(answer.SerializeToString())

    def handle(message: bytes, call: Call) -> None:
        pool.submit(run, message, call)

    return handle
