"""Where the large fields of a ``ModelInferRequest`` lie, and what stands before those of a ``ModelInferResponse``.

protobuf copies each ``bytes`` field when it parses a message, and once more whenever it is read; for a tensor of 16 MiB that is several
times the cost of all the rest. A serialized message is a sequence of fields in any order, and serialized messages put one after the other
are one whose fields are merged (protobuf.dev/programming-guides/encoding). So the tensors are left where they are, and everything else,
which clients repeat, is parsed by protobuf once.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Union

_LENGTH_DELIMITED = 2
_FIRST, _ID, _RAW_INPUT_CONTENTS = (number << 3 | _LENGTH_DELIMITED for number in (1, 3, 7))


class InferRequestParts(NamedTuple):
    """``head``: all fields but the id and the contents, as they came. ``contents``: of ``raw_input_contents``, in order."""

    head: bytes
    request_id: str
    contents: Sequence[Union[bytes, memoryview]]


def split(message: bytes) -> Optional[InferRequestParts]:
    """Takes a serialized ``ModelInferRequest`` apart; None if there is anything unusual about it, which protobuf should judge."""
    view = memoryview(message)
    request_id = b""
    head: List[memoryview] = []
    contents: List[memoryview] = []
    at = kept = 0
    end = len(message)
    while at < end:
        if at + 1 == end:
            return None
        tag = message[at]
        if tag & 7 != _LENGTH_DELIMITED or not _FIRST <= tag <= _RAW_INPUT_CONTENTS:
            return None
        start = at + 2
        size = message[at + 1]
        if size >= 0x80:
            size &= 0x7F
            for shift in range(7, 64, 7):
                if start == end:
                    return None
                byte = message[start]
                start += 1
                size |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
            else:
                return None
        stop = start + size
        if stop > end:
            return None
        if tag in (_RAW_INPUT_CONTENTS, _ID):
            if kept < at:
                head.append(view[kept:at])
            kept = stop
            if tag == _ID:
                if request_id:
                    return None
                request_id = message[start:stop]
            else:
                contents.append(view[start:stop])
        at = stop
    if kept < end:
        head.append(view[kept:])
    try:
        return InferRequestParts(b"".join(head), request_id.decode(), contents)
    except UnicodeDecodeError:
        return None


def prefix(number: int, size: int) -> bytes:
    """What stands before the ``size`` bytes of a length-delimited field."""
    encoded = bytearray([number << 3 | _LENGTH_DELIMITED])
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
