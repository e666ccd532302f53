"""Messages as they should be, drawn by hypothesis, and what to change in them."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator, List, Tuple

import msgpack
from hypothesis import strategies as st
from stublet.shm.dtype import BY_CODE, BYTES
from stublet.shm.message import (
    BLOCKING,
    BORROWED,
    DEVICE_OUTPUTS,
    EMPTY,
    FAILURE,
    FINAL,
    FINALIZE,
    HOST_OUTPUTS,
    IN_REGION,
    INDIRECT,
    NEWS,
    RESCHEDULE,
    RETURNED,
    STREAM,
    WORK,
    ErrorCode,
    decode_down,
    decode_up,
)

NUMBER = st.integers(0, 2**40)
KEY = st.tuples(NUMBER, NUMBER)
TEXT = st.text(max_size=5)
NAME = st.integers(0, 9)
PARAMETERS = st.sampled_from(["{}", '{"a": 1, "b": "c"}', '{"a": true}'])


def several(parts: st.SearchStrategy[Any], at_least: int = 0) -> st.SearchStrategy[Tuple[Any, ...]]:
    return st.lists(parts, min_size=at_least, max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, name: st.SearchStrategy[Any], blocks: int) -> Tuple[Any, ...]:
    """Some tensors in that many blocks."""
    found = []
    for _ in range(draw(st.integers(0, 3)) if blocks else 0):
        dtype = draw(st.sampled_from(sorted(BY_CODE)))
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        nbytes = draw(st.integers(0, 64)) if dtype == BYTES.code else math.prod(shape) * BY_CODE[dtype].itemsize
        found.append((draw(name), dtype, shape, draw(st.integers(0, blocks - 1)), draw(st.integers(0, 64)), nbytes))
    return tuple(found)


CORRELATION = st.integers(0, 2**64 - 1) | TEXT
EXTRAS = st.one_of(st.just(()), st.tuples(TEXT, st.none() | several(NAME), TEXT, CORRELATION, st.integers(0, 3), NUMBER))
CALL_EXTRAS = st.tuples(TEXT, PARAMETERS, CORRELATION, st.integers(0, 3), NUMBER)
ERROR = st.just(()) | st.tuples(st.sampled_from(ErrorCode).map(int), TEXT)


@st.composite
def requests(draw: st.DrawFn) -> Tuple[Any, ...]:
    count = draw(st.integers(0, 3))
    inputs = draw(tensors(NAME, count))
    blocks = []
    for index in range(count):
        size = max([offset + nbytes for *_, block, offset, nbytes in inputs if block == index], default=0)
        blocks.append((*draw(KEY), size + draw(st.integers(0, 8))))
    regions: Tuple[Any, ...] = ()
    if draw(st.booleans()):
        # Any number of the blocks, from the last, may be in regions.
        first = draw(st.integers(0, count))
        reads = tuple((segment, abs(offset), size) for segment, offset, size in blocks[first:])
        del blocks[first:]
        regions = (reads, draw(several(st.tuples(NAME, NUMBER, NAME, NAME))))
    return draw(NUMBER), draw(st.integers(0, BORROWED | DEVICE_OUTPUTS)), tuple(blocks), inputs, draw(EXTRAS), regions


@st.composite
def results(draw: st.DrawFn) -> Tuple[Any, ...]:
    flags = draw(st.integers(0, FINAL | RETURNED | EMPTY | RESCHEDULE | FAILURE))
    blocks = draw(several(KEY))
    outputs = draw(tensors(NAME, len(blocks)))
    if draw(st.booleans()):
        outputs = tuple((name, dtype, shape, IN_REGION, 0, nbytes) for name, dtype, shape, _, _, nbytes in outputs)
    return draw(NUMBER), flags, draw(NUMBER), draw(several(NAME)), blocks, outputs, draw(ERROR), draw(st.just("") | PARAMETERS)


@st.composite
def calls(draw: st.DrawFn) -> Tuple[Any, ...]:
    if draw(st.booleans()):
        return (draw(NUMBER),)
    blocks = draw(several(KEY))
    inputs = draw(tensors(TEXT, len(blocks)))
    flags, version = draw(st.integers(0, STREAM | BLOCKING | HOST_OUTPUTS)), draw(st.integers(-1, 9))
    return draw(NUMBER), flags, draw(TEXT), version, blocks, inputs, draw(several(TEXT)), draw(CALL_EXTRAS)


@st.composite
def replies(draw: st.DrawFn) -> Tuple[Any, ...]:
    if draw(st.booleans()):
        return (draw(NUMBER),)
    blocks = draw(several(st.tuples(NUMBER, NUMBER, NUMBER)))
    outputs = draw(tensors(TEXT, len(blocks)))
    return draw(NUMBER), draw(st.booleans()), blocks, outputs, draw(ERROR), draw(TEXT)


INDIRECTS = st.tuples(st.just(INDIRECT), NUMBER, NUMBER, NUMBER)
DOWN = st.one_of(
    INDIRECTS, st.just((FINALIZE,)), st.tuples(st.just(WORK), several(KEY), several(several(requests(), at_least=1)), several(replies()))
)
UP = st.one_of(INDIRECTS, st.tuples(st.just(NEWS), several(KEY), several(results()), several(calls())))
ANY = st.tuples(st.just(decode_down), DOWN) | st.tuples(st.just(decode_up), UP)


# ---- the properties ----


ODD = st.sampled_from(
    [None, True, False, 0, 1, 0.0, 1.0, math.nan, -1, 2**63, 2**64 - 1, "", "ab", b"", b"\1", b"\1\2", (), (0,), (0, 0), {}, {"a": 1},
     {b"\1\2": 0}, msgpack.ExtType(5, b"\1"), msgpack.Timestamp(1)],
)  # fmt: skip


def places(message: Any, path: Tuple[int, ...] = ()) -> Iterator[Tuple[int, ...]]:
    """Where a message has parts."""
    yield path
    if isinstance(message, tuple):
        for i, part in enumerate(message):
            yield from places(part, (*path, i))


def replaced(message: Any, path: Tuple[int, ...], by: Callable[[Any], Any]) -> Any:
    if not path:
        return by(message)
    parts: List[Any] = list(message)
    parts[path[0]] = replaced(parts[path[0]], path[1:], by)
    return tuple(parts)
