"""Looks at device memory that a client wants to register: whether there is such memory, and on which GPU. A program, run by path with any
interpreter; it needs the module ``driver`` beside it and nothing else.

Its input is a line: the number of the GPU, the bytes that the client says it has there, and its handle in hexadecimal. Its output is "ok" and
the UUID of the GPU in hexadecimal; "no driver" and why; or what is wrong.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def check(driver: Any, device: int, nbytes: int, handle: bytes) -> str:
    """What is said of memory that another process exports."""
    count = driver.count()
    if not 0 <= device < count:
        return f"there is no GPU {device}: the server sees {count}"
    with driver.on(device):
        base = driver.open(handle)
        try:
            start, size = driver.extent(base)
        finally:
            driver.close(base)
    room = start + size - base
    return f"ok {driver.uuid(device).hex()}" if nbytes <= room else f"it has {room} bytes, not {nbytes}"


def main(load: Any, absent: Any) -> None:
    """Reads, checks, prints. ``absent``: what ``load`` raises where there is no driver."""
    device, nbytes, handle = sys.stdin.readline().split()
    try:
        print(check(load(), int(device), int(nbytes), bytes.fromhex(handle)))
    except absent as error:
        print(f"no driver {error}")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # where it is already, unless PYTHONSAFEPATH is set
    found = import_module("driver")
    main(found.load, found.NoDriver)
