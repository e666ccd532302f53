"""Finds out whether a process can open device memory that another exports: in some containers, under WSL2, and between parts of a GPU, it
cannot. A program, run by path with any interpreter; it needs the module ``driver`` beside it and nothing else.

Its input is a line: UUID, handle and the bytes that the memory begins with, in hexadecimal. Its output is "ok"; "full" and what failed, if the
device had no room for a look; or why not.
"""

from __future__ import annotations

import ctypes
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def check(driver: Any, uuid: bytes, handle: bytes, expected: bytes) -> str:
    """What this process makes of the memory: "ok", or what is wrong."""
    device = next((number for number in range(driver.count()) if driver.uuid(number) == uuid), None)
    if device is None:
        return "the device is not visible to the server (CUDA_VISIBLE_DEVICES)"
    with driver.on(device):
        base = driver.open(handle)
        found = ctypes.create_string_buffer(len(expected))
        stream = driver.create_stream()
        driver.copy_to_host(ctypes.addressof(found), base, len(expected), stream)
        driver.finish(stream)
        driver.close(base)
    return "ok" if found.raw == expected else "another process sees other bytes there"


def main(load: Any) -> None:
    """Reads, checks, prints."""
    uuid, handle, expected = map(bytes.fromhex, sys.stdin.readline().split())
    try:
        print(check(load(), uuid, handle, expected))
    except Exception as error:
        is_full = getattr(error, "name", "") == "CUDA_ERROR_OUT_OF_MEMORY"  # a context takes half a gigabyte
        print(f"{'full ' if is_full else ''}{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # where it is already, unless PYTHONSAFEPATH is set
    main(import_module("driver").load)
