"""What the objects of ``model.py`` need from the process they live in.

In a stub the process replaces these; anywhere else (a unit test of a model, a notebook) the defaults do.
"""

from __future__ import annotations

import sys
from typing import Any, Callable

import numpy as np

from .error import TritonModelException
from .standalone import Standalone


def _print_log(level: str, file: str, line: int, text: str, exception: str = "") -> None:
    print(f"{level} {file}:{line}] {text}", file=sys.stderr)
    if exception:
        print(exception, file=sys.stderr)


class _NoCaller:
    """``caller`` where there is no server, or none that may be asked now."""

    def execute(self, *_: Any) -> Any:
        raise TritonModelException("BLS is only supported during the 'execute' function.")

    execute_async = execute


class Host:
    """``log``: takes (level, file, line, text) and, if there is one, a traceback. ``allocate``: bytes -> UINT8 array to place an output in. ``free_memory``: bytes that are
    free in the shared memory for outputs. ``model_dir``: the version directory of the model. ``model_config``: its configuration, as
    ``initialize`` is given it, empty outside a server. ``instance``: its name, empty outside a
    server. ``caller``: executes requests that the model makes (``stublet.stub.caller``).

    ``ask`` takes a question and its arguments to the server and returns the answer, or raises TritonModelException with the server's
    text. ``tell`` does not wait for anything; it is ordered with ``ask``, and may be called in any thread and by the garbage collector."""

    log: Callable[..., None] = staticmethod(_print_log)
    allocate: Callable[[int], np.ndarray] = staticmethod(lambda nbytes: np.empty(nbytes, np.uint8))
    free_memory: Callable[[], int] = staticmethod(lambda: 0)
    model_dir: str = ""
    model_config: str = ""
    instance: str = ""
    caller: Any = _NoCaller()
    ask: Callable[..., Any]
    tell: Callable[..., None]

    def __init__(self) -> None:
        standalone = Standalone()
        self.ask = standalone.ask
        self.tell = standalone.tell


host = Host()
"""The one of this process."""


def refusal(prefix: str, reason: object) -> str:
    """The text of what is refused, in Triton's words."""
    return f"{prefix}Failed to process the request for model '{host.instance}', message: {reason}" if host.instance else f"{prefix}{reason}"


def ask(prefix: str, what: str, *arguments: Any) -> Any:
    """``host.ask``, with a prefix to the server's text if it refuses.

    Raises:
        TritonModelException: it does.
    """
    try:
        return host.ask(what, *arguments)
    except TritonModelException as error:
        raise TritonModelException(refusal(prefix, error)) from None
