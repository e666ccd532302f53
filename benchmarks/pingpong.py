"""A bare eventfd ping-pong between two Python processes: the floor under any blocking round trip.

Run as a module with two descriptors, it is the far end: it answers each ring of the first with one
of the second until its standard input ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ONE = (1).to_bytes(8, sys.byteorder)


@dataclass(frozen=True, slots=True)
class Peer:
    """The near end. `pid` is the far one's."""

    pid: int
    ping: int
    pong: int

    def round_trip(self) -> None:
        """Rings and sleeps until the far end, woken by that, has rung back."""
        os.write(self.ping, _ONE)
        os.read(self.pong, 8)


@contextmanager
def peer() -> Iterator[Peer]:
    """A far end in a new interpreter, which ends with the block, or with this process."""
    ping, pong = os.eventfd(0), os.eventfd(0)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(ping), str(pong)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            pass_fds=(ping, pong),
        )
        with process:
            yield Peer(process.pid, ping, pong)
    finally:
        os.close(ping)
        os.close(pong)


def _end_with_stdin() -> None:
    # An eventfd never says that its other end is gone; the pipe does. Blocked, it takes no GIL.
    sys.stdin.buffer.read()
    os._exit(0)


def _answer(ping: int, pong: int) -> None:
    while True:
        os.read(ping, 8)
        os.write(pong, _ONE)


if __name__ == "__main__":
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _answer(int(sys.argv[1]), int(sys.argv[2]))
