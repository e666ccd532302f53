"""What is kept of what a stub prints, and of the stacks that its faulthandler writes."""

from __future__ import annotations

import asyncio
import os
from typing import Callable, List

from stublet.parent.stub_output import LineReader, StackReader


def kept_of(written: bytes) -> List[str]:
    """The last lines of a stub that printed this."""

    async def run() -> List[str]:
        lines: List[str] = []
        reader = LineReader(asyncio.get_running_loop(), lines.append)
        _write(reader.write_end, written, reader._on_readable)
        reader.close_write_end()
        reader.finish()
        assert "\n".join(lines) == written.decode().rstrip("\n")
        return reader.last_lines()

    return asyncio.run(run())


def _write(fd: int, data: bytes, read: Callable[[], None]) -> None:
    for start in range(0, len(data), 4096):
        os.write(fd, data[start : start + 4096])
        read()


def test_the_last_lines() -> None:
    assert kept_of(b"one\ntwo\nthree") == ["one", "two", "three"]
    assert kept_of(b"") == []


def test_fifty_of_them() -> None:
    assert kept_of(b"".join(b"%d\n" % number for number in range(1000))) == [str(number) for number in range(950, 1000)]


def test_eight_kibibytes_of_them() -> None:
    assert [len(line) for line in kept_of(b"".join(b"x" * 3000 + b"\n" for _ in range(20)))] == [3000, 3000]
    assert [len(line) for line in kept_of(b"y" * 30_000 + b"\n")] == [8192]


def test_what_never_stops_writing_is_not_read_to_the_end() -> None:
    """A process that the stub left behind, and that writes as fast as it is read."""

    async def run() -> None:
        lines: List[str] = []

        def on_line(line: str) -> None:
            lines.append(line)
            os.write(reader.write_end, b"on and on\n")

        reader = LineReader(asyncio.get_running_loop(), on_line)
        os.write(reader.write_end, b"x" * 4000 + b"\n")
        reader.finish()
        reader.close_write_end()
        assert lines[0] == "x" * 4000 and len(lines) < 100

    asyncio.run(run())


def test_stacks_are_taken_once_and_are_bounded() -> None:
    async def run() -> None:
        reader = StackReader(asyncio.get_running_loop())
        os.write(reader.write_end, b"\nThread 1\n")
        assert reader.take() == "\nThread 1\n"
        assert reader.take() == ""
        _write(reader.write_end, b"x" * (1 << 20), reader._read)
        assert len(reader.take()) == 256 << 10
        os.write(reader.write_end, b"Fatal Python error\n")
        reader.close_write_end()
        reader.finish()
        assert reader.take() == "Fatal Python error\n"

    asyncio.run(run())
