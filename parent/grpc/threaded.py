"""Calls that are answered in a thread, but wait without one: for their message, else 64 clients that send none would hold up all others;
and for what takes long, such as the load of a model, else 64 loads would hold up every probe.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, Executor, Future
from functools import partial
from typing import Any, Callable

from google.protobuf.message import DecodeError

from ..errors import InternalError, ServerError, Unavailable
from .inline import Call, UnaryHandler, internal


def threaded(pool: Executor, loop: asyncio.AbstractEventLoop, method: Callable[[Any, Any], Any], message_type: Any) -> UnaryHandler:
    """A handler for ``inline.unary``, of a servicer's method, which may raise what the client is to be told.

    Args:
        loop: runs the method if it is a coroutine function, which may take its time; any other runs in the pool.
        method: takes a message of ``message_type`` and a context, which is None; returns the message that is the answer.
    """
    takes_time = asyncio.iscoroutinefunction(method)

    def run(message: bytes, call: Call) -> None:
        answer: Future[Any] = Future()
        try:
            request = message_type.FromString(message)
            if takes_time:
                answer = asyncio.run_coroutine_threadsafe(method(request, None), loop)
            else:
                answer.set_result(method(request, None))
        except Exception as error:
            answer.set_exception(error)
        answer.add_done_callback(partial(_tell, call))

    def handle(message: bytes, call: Call) -> None:
        pool.submit(run, message, call)

    return handle


def _tell(call: Call, answer: Future[Any]) -> None:
    try:
        call.finish(answer.result().SerializeToString())
    except ServerError as error:
        call.fail(error)
    except DecodeError:
        call.fail(InternalError("Exception deserializing request!"))
    except CancelledError:
        call.fail(Unavailable("the server is ending"))
    except Exception as error:
        call.fail(internal(error))
