"""The command ``stublet``: ``serve``, ``infer``, ``ps`` and ``doctor``."""

from __future__ import annotations

import os
import sys

from ..libc import copy_tuning


def main() -> None:
    """Entry point of the command."""
    _open_streams()
    if sys.argv[1:2] == ["serve"]:
        _tune()
    from .commands import cli  # not before: this process may be about to start anew

    cli(prog_name="stublet")


def _open_streams() -> None:
    """Whoever starts this program may have closed its standard streams. Other files would get their numbers, and take what is printed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free, which is this one
            setattr(sys, name, open(fd, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115 (for as long as the process lives)


def _tune() -> None:
    """Starts this program once more, with variables that the C library reads at its start and at no other time. A message of 16 MiB, which
    gRPC copies five times, is answered 7 % sooner for it; the start takes 20 ms longer."""
    variables = copy_tuning()
    if variables and sys.executable:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **variables})
