"""What a stub prints: its stdout and stderr are pipes, read by the server's loop line by line; so is that to which faulthandler writes
stacks, as a whole."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from typing import Callable, Deque, List

from .flood import PRINTED_BYTES, FloodGate

_READ_BYTES = 64 << 10
_PIPE_BYTES = 1 << 20
"""A pipe holds no more, unless someone with privileges has made it larger."""
_LONGEST_LINE = 64 << 10
_LINES_A_TURN = 50
"""How many lines are logged before the loop's other callbacks have their turn: a millisecond or two."""
_LAST_LINES = 50
_LAST_CHARACTERS = 8 << 10
_MOST_STACKS = 256 << 10


class LineReader:
    """Calls ``on_line`` with each line of a pipe, without its end; a line of over 64 KiB comes in pieces. Of a flood, see ``flood``, some
    is left out, but it is read, so that the stub does not wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_line: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_line = on_line
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._rest = b""
        self._lines: Deque[bytes] = deque()
        self._gate = FloodGate(loop, PRINTED_BYTES, on_line)
        self._last: Deque[str] = deque(maxlen=_LAST_LINES)
        self._last_characters = 0
        self._open = True
        loop.add_reader(self._read_end, self._on_readable)

    def close_write_end(self) -> None:
        """Call when the stub has its copy."""
        os.close(self.write_end)

    def discard(self) -> None:
        """Closes both ends: there will be no stub."""
        self.close_write_end()
        self.finish()

    def last_lines(self) -> List[str]:
        """The last lines, at most 50 and 8 KiB."""
        return list(self._last)

    def finish(self) -> None:
        """Reads what is there and closes; a process that the stub left behind may hold the other end open for ever, and write on."""
        if not self._open:
            return
        with suppress(BlockingIOError):
            for _ in range(_PIPE_BYTES // _READ_BYTES):
                if not self._read():
                    break
                self._take_lines(len(self._lines))
        self._end()

    def _on_readable(self) -> None:
        with suppress(BlockingIOError):
            if not self._read():
                self._end()
            elif len(self._lines) > _LINES_A_TURN:
                self._loop.remove_reader(self._read_end)
                self._go_on()
            else:
                self._take_lines(_LINES_A_TURN)

    def _go_on(self) -> None:
        if not self._open:
            return
        self._take_lines(_LINES_A_TURN)
        if self._lines:
            self._loop.call_soon(self._go_on)
        else:
            self._loop.add_reader(self._read_end, self._on_readable)

    def _read(self) -> bool:
        data = os.read(self._read_end, _READ_BYTES)
        known = self._rest + data
        if self._gate.shut:
            # Only its last lines are looked at, which may say why the stub died.
            known, left_out = known[-_LAST_CHARACTERS:], known[:-_LAST_CHARACTERS]
            self._gate.leave_out(left_out.count(b"\n"), len(left_out))
        *lines, rest = known.split(b"\n")
        if not data or len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest] if rest else lines, b""
        if self._gate.shut and len(lines) > _LAST_LINES:
            left = lines[:-_LAST_LINES]
            self._gate.leave_out(len(left), sum(map(len, left)))
            lines = lines[-_LAST_LINES:]
        self._rest = rest
        self._lines.extend(lines)
        return bool(data)

    def _take_lines(self, most: int) -> None:
        for _ in range(min(most, len(self._lines))):
            self._take(self._lines.popleft())

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        last = self._last
        if len(last) == _LAST_LINES:
            self._last_characters -= len(last.popleft())
        last.append(text[:_LAST_CHARACTERS])
        self._last_characters += len(last[-1])
        while self._last_characters > _LAST_CHARACTERS:
            self._last_characters -= len(last.popleft())
        if self._gate.admits(len(line)):
            self._on_line(text)

    def _end(self) -> None:
        self._take_lines(len(self._lines))
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        self._gate.open()
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        self._open = False


class StackReader:
    """The pipe to which the stub's faulthandler writes. What it wrote last, 256 KiB at most, is kept until it is taken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._text = b""
        self._open = True
        loop.add_reader(self._read_end, self._read)

    def close_write_end(self) -> None:
        """Call when the stub has its copy."""
        os.close(self.write_end)

    def take(self) -> str:
        """What has come since the last time."""
        self._read()
        text, self._text = self._text, b""
        return text.decode("utf-8", "replace")

    def finish(self) -> None:
        """Reads what is there and closes."""
        self._read()
        self._end()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            # A stub that never stops writing is heard a few pages at a time.
            for _ in range(_MOST_STACKS // _READ_BYTES if self._open else 0):
                data = os.read(self._read_end, _READ_BYTES)
                if not data:
                    self._end()
                    return
                self._text = (self._text + data)[-_MOST_STACKS:]

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
