"""BYTES tensors on the wire: for each element, in C order, its length as 4 bytes little-endian and then its bytes.

Source: KServe v2 binary tensor data extension. Elements of one length, which is what tokens, digests and benchmarks have, are
handled as a matrix; the others in a loop that touches each element once.
"""

from __future__ import annotations

import struct
from typing import List, Optional, Sequence, Union

import numpy as np

Buffer = Union[bytes, bytearray, memoryview, np.ndarray]

LENGTH_BYTES = 4
"""What the length of an element takes."""
_PREFIXES = [struct.pack("<I", length) for length in range(1024)]
"""The lengths of short elements as they are written; picking one takes half as long as packing it."""
_LONGEST_ITEM = 2**31 - 1
"""numpy has no longer items than this."""


class BytesError(ValueError):
    """The buffer ends within an element. ``needed`` bytes were announced (None: within the length itself), ``available`` are left."""

    def __init__(self, needed: Optional[int], available: int) -> None:
        what = "incomplete length field" if needed is None else "string extends beyond buffer"
        super().__init__(f"Invalid bytes tensor data: {what}")
        self.needed = needed
        self.available = available


def encode(items: Sequence[bytes]) -> bytes:
    """The wire form of ``items``, each of which is ``bytes`` (of less than 4 GiB)."""
    if not items:
        return b""
    lengths = list(map(len, items))
    if lengths.count(lengths[0]) == len(lengths):
        prefix = struct.pack("<I", lengths[0])
        return prefix + prefix.join(items)
    pieces: List[bytes] = [b""] * (2 * len(lengths))
    if max(lengths) < len(_PREFIXES):
        pieces[::2] = map(_PREFIXES.__getitem__, lengths)
    else:
        pieces[::2] = map(struct.Struct("<I").pack, lengths)
    pieces[1::2] = items
    return b"".join(pieces)


def decode(buffer: Buffer) -> List[bytes]:
    """The elements of a wire form.

    Raises:
        BytesError: it ends within an element.
    """
    uniform = _uniform_length(buffer)
    if uniform is not None and uniform <= _LONGEST_ITEM:
        count = len(buffer) // (LENGTH_BYTES + uniform)
        if uniform == 0:
            return [b""] * count
        matrix = np.ndarray((count,), f"V{uniform}", buffer, LENGTH_BYTES, (LENGTH_BYTES + uniform,))
        items: List[bytes] = matrix.tolist()
        return items
    data = bytes(buffer)
    items, position, end = [], 0, len(data)
    unpack_from, append, last = struct.Struct("<I").unpack_from, items.append, end - LENGTH_BYTES
    while position <= last:
        start = position + LENGTH_BYTES
        position = start + unpack_from(data, position)[0]
        append(data[start:position])
    if position != end:
        _raise_at(data, end)
    return items


def count(buffer: Buffer) -> int:
    """How many elements a wire form holds, without making them.

    Raises:
        BytesError: it ends within an element.
    """
    uniform = _uniform_length(buffer)
    if uniform is not None:
        return len(buffer) // (LENGTH_BYTES + uniform)
    elements, position, end = 0, 0, len(buffer)
    unpack_from = struct.Struct("<I").unpack_from
    last = end - LENGTH_BYTES
    while position <= last:
        position += LENGTH_BYTES + unpack_from(buffer, position)[0]
        elements += 1
    if position != end:
        _raise_at(buffer, end)
    return elements


def mismatch(buffer: Buffer, expected: int, name: str, model: str) -> str:
    """What a client is told, in Triton's words, of an input that should hold ``expected`` elements; nothing if it does."""
    try:
        found = count(buffer)
    except BytesError as error:
        what = "incomplete string data" if error.needed is not None else "incomplete string length indicator"
        expecting = f"string of length {error.needed}" if error.needed is not None else "4 bytes"
        return f"{what} for inference input '{name}', expecting {expecting} but only {error.available} bytes available"
    if found < expected:
        return f"expected {expected} string elements for inference input '{name}' for model '{model}', got {found}"
    if found > expected:
        return f"unexpected number of string elements {found} for inference input '{name}' for model '{model}', expecting {expected}"
    return ""


def _uniform_length(buffer: Buffer) -> Optional[int]:
    """The length that all elements have, if they have one (None for an empty buffer)."""
    end = len(buffer)
    if end < LENGTH_BYTES:
        return None
    length = int.from_bytes(buffer[:LENGTH_BYTES], "little")
    elements, rest = divmod(end, LENGTH_BYTES + length)
    if rest:
        return None
    lengths = np.ndarray((elements,), "<u4", buffer, 0, (LENGTH_BYTES + length,))
    return length if (lengths == length).all() else None


def _raise_at(buffer: Buffer, end: int) -> None:
    """Finds the element that the buffer ends in, and raises."""
    position = 0
    while True:
        if end - position < LENGTH_BYTES:
            raise BytesError(None, end - position)
        length = int.from_bytes(bytes(buffer[position : position + LENGTH_BYTES]), "little")
        position += LENGTH_BYTES
        if end - position < length:
            raise BytesError(length, end - position)
        position += length
