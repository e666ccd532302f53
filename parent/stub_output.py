"""What a stub prints: its stdout and stderr are pipes, read by the server's loop line by line."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from typing import Callable, Deque

_READ_BYTES = 64 << 10
_LONGEST_LINE = 64 << 10
_LAST_LINES = 20


class LineReader:
    """Calls ``on_line`` with each line of a pipe, without its end; a line of over 64 KiB comes in pieces."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_line: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_line = on_line
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._rest = b""
        self._last: Deque[str] = deque(maxlen=_LAST_LINES)
        self._open = True
        loop.add_reader(self._read_end, self._on_readable)

    def close_write_end(self) -> None:
        """Call when the stub has its copy."""
        os.close(self.write_end)

    def last_lines(self) -> str:
        """The last lines, at most 20."""
        return "\n".join(self._last)

    def finish(self) -> None:
        """Reads what is there and closes; a process that the stub left behind may hold the other end open for ever."""
        if self._open:
            with suppress(BlockingIOError):
                while self._read():
                    continue
        if self._open:
            self._end()

    def _on_readable(self) -> None:
        with suppress(BlockingIOError):
            if not self._read():
                self._end()

    def _read(self) -> bool:
        data = os.read(self._read_end, _READ_BYTES)
        *lines, rest = (self._rest + data).split(b"\n")
        if not data or len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest] if rest else lines, b""
        self._rest = rest
        for line in lines:
            text = line.decode("utf-8", "replace")
            self._last.append(text)
            self._on_line(text)
        return bool(data)

    def _end(self) -> None:
        if self._rest:
            self._on_line(self._rest.decode("utf-8", "replace"))
            self._last.append(self._rest.decode("utf-8", "replace"))
            self._rest = b""
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        self._open = False
