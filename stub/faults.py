"""Stacks of the stub, for its server: after a native crash, and whenever the server asks with a signal.

faulthandler writes them in a signal handler of C, so they come also while the model's native code holds the interpreter.
"""

from __future__ import annotations

import faulthandler
import os
import signal

STACKS_SIGNAL = signal.SIGUSR1
"""Whoever may get it before ``report_to`` has to ignore it."""

_STDERR = 2


def report_to(fd: int) -> None:
    """Has the stacks written to that descriptor; those of processes that the model forks, to their standard error."""
    os.set_inheritable(fd, False)
    _use(fd)
    os.register_at_fork(after_in_child=lambda: _use(_STDERR))


def _use(fd: int) -> None:
    faulthandler.enable(fd)
    faulthandler.register(STACKS_SIGNAL, fd)
