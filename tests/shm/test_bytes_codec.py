"""BYTES on the wire: what goes in comes out, and a buffer that ends within an element says where."""

from __future__ import annotations

import struct
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.shm import bytes_codec
from stublet.shm.bytes_codec import BytesError, count, decode, encode

ITEMS = st.one_of(
    st.lists(st.binary(max_size=20), max_size=30),
    # Of one length, which is handled as a matrix.
    st.integers(0, 20).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), max_size=30)),
    # Longer than any prefix that is kept ready.
    st.lists(st.integers(1020, 1030).map(bytes), max_size=3),
)

BUFFERS: List[Callable[[bytes], Any]] = [
    bytes,
    bytearray,
    memoryview,
    lambda data: np.frombuffer(data, np.uint8),
    lambda data: np.frombuffer(b"x" + data + b"x", np.uint8)[1 : len(data) + 1],
]


def wire(items: List[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


@given(ITEMS, st.sampled_from(BUFFERS))
def test_round_trip(items: List[bytes], buffer: Callable[[bytes], Any]) -> None:
    data = encode(items)
    assert data == wire(items)
    assert encode(tuple(items)) == data
    decoded = decode(buffer(data))
    assert decoded == items and all(type(item) is bytes for item in decoded)
    assert count(buffer(data)) == len(items)


@given(st.lists(st.binary(min_size=3, max_size=3)))
def test_items_that_numpy_cannot_hold_take_the_other_way(items: List[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bytes_codec, "_LONGEST_ITEM", 2)
        assert decode(wire(items)) == items
    assert np.dtype(f"V{bytes_codec._LONGEST_ITEM}").itemsize == bytes_codec._LONGEST_ITEM


def expected(data: bytes) -> tuple[Optional[List[bytes]], Optional[int], int]:
    """(items, None, 0), or (None, bytes announced, bytes left)."""
    items, position = [], 0
    while position < len(data):
        if len(data) - position < 4:
            return None, None, len(data) - position
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if len(data) - position < length:
            return None, length, len(data) - position
        items.append(data[position : position + length])
        position += length
    return items, None, 0


@given(
    st.one_of(
        st.binary(max_size=40),
        st.lists(st.integers(0, 12).map(lambda n: struct.pack("<I", n)) | st.binary(max_size=6)).map(b"".join),
        st.tuples(ITEMS, st.integers(0, 60)).map(lambda cut: wire(cut[0])[: cut[1]]),
    ),
    st.sampled_from(BUFFERS),
)
def test_any_buffer_is_items_or_an_error_that_says_where(data: bytes, buffer: Callable[[bytes], Any]) -> None:
    items, needed, available = expected(data)
    for read in (decode, count):
        if items is not None:
            assert read(buffer(data)) == (items if read is decode else len(items))
        else:
            with pytest.raises(BytesError) as raised:
                read(buffer(data))
            assert (raised.value.needed, raised.value.available) == (needed, available)


@pytest.mark.parametrize(
    "data, text",
    [
        (b"\1\0\0", "Invalid bytes tensor data: incomplete length field"),
        (b"\1\0\0\0", "Invalid bytes tensor data: string extends beyond buffer"),
        (b"\1\0\0\0a\2\0", "Invalid bytes tensor data: incomplete length field"),
        (b"\xff\xff\xff\xffa", "Invalid bytes tensor data: string extends beyond buffer"),
    ],
)
def test_the_texts_are_those_of_triton(data: bytes, text: str) -> None:
    with pytest.raises(BytesError) as raised:
        decode(data)
    assert str(raised.value) == text
    assert isinstance(raised.value, ValueError)
