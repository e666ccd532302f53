"""Messages: any bytes are a message, every part of it as documented, or a ProtocolError."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import Any, Callable, Iterator, List, Tuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stublet.shm.dtype import BY_CODE, BYTES
from stublet.shm.errors import ProtocolError
from stublet.shm.message import EXECUTE, FINALIZE, INDIRECT, RESULTS, ErrorCode, decode_down, decode_up, pack, packer, unpack

Decoder = Callable[[bytes], Tuple[Any, ...]]

# ---- messages as they should be ----

NUMBER = st.integers(0, 2**40)
KEY = st.tuples(NUMBER, NUMBER)
TEXT = st.text(max_size=5)


@st.composite
def tensors(draw: st.DrawFn, *middle: st.SearchStrategy[int]) -> Tuple[Any, ...]:
    """(name, dtype, shape, *middle, offset, nbytes)."""
    dtype = draw(st.sampled_from(sorted(BY_CODE)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    nbytes = draw(st.integers(0, 64)) if dtype == BYTES.code else math.prod(shape) * BY_CODE[dtype].itemsize
    return (draw(st.integers(0, 9)), dtype, shape, *(draw(m) for m in middle), draw(st.integers(0, 64)), nbytes)


EXTRAS = st.one_of(
    st.just(()),
    st.tuples(
        TEXT,
        st.none() | st.lists(st.integers(0, 9), max_size=3).map(tuple),
        TEXT,
        st.integers(0, 2**64 - 1) | TEXT,
        st.integers(0, 3),
        NUMBER,
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> Tuple[Any, ...]:
    inputs = tuple(draw(st.lists(tensors(), max_size=3)))
    size = max([offset + nbytes for *_, offset, nbytes in inputs], default=0) + draw(st.integers(0, 8))
    return draw(NUMBER), draw(NUMBER), draw(NUMBER), size, inputs, draw(EXTRAS)


@st.composite
def results(draw: st.DrawFn) -> Tuple[Any, ...]:
    blocks = tuple(draw(st.lists(KEY, min_size=1, max_size=3)))
    outputs = tuple(draw(st.lists(tensors(st.integers(0, len(blocks) - 1)), max_size=3)))
    error = draw(st.just(()) | st.tuples(st.sampled_from(ErrorCode).map(int), TEXT))
    return draw(NUMBER), draw(NUMBER), draw(st.booleans()), blocks, outputs, error, draw(TEXT)


def several(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Tuple[Any, ...]]:
    return st.lists(parts, max_size=3).map(tuple)


INDIRECTS = st.tuples(st.just(INDIRECT), NUMBER, NUMBER, NUMBER)
DOWN = st.one_of(
    INDIRECTS,
    st.just((FINALIZE,)),
    st.tuples(st.just(EXECUTE), several(KEY), several(st.lists(requests(), min_size=1, max_size=3).map(tuple))),
)
UP = st.one_of(INDIRECTS, st.tuples(st.just(RESULTS), several(KEY), several(results())))
ANY = st.tuples(st.just(decode_down), DOWN) | st.tuples(st.just(decode_up), UP)

# ---- what a reader relies on ----


def check(value: Any, *kinds: type) -> None:
    assert type(value) in kinds, value


def check_tensors(tensors: Any, extra: int, size: float) -> None:
    check(tensors, tuple)
    hash(tensors)
    for tensor in tensors:
        name, dtype, shape, *middle, offset, nbytes = tensor
        assert len(middle) == extra
        check(shape, tuple)
        for number in (name, dtype, *shape, *middle, offset, nbytes):
            check(number, int)
            assert number >= 0
        if dtype != BYTES.code:
            assert math.prod(shape) * BY_CODE[dtype].itemsize == nbytes
        assert offset + nbytes <= size


def check_keys(keys: Any) -> None:
    len(keys)
    for segment, offset in keys:
        check(segment, int)
        check(offset, int)


def check_message(decoder: Decoder, message: Tuple[Any, ...]) -> None:
    """The documented structure, which the readers take apart without looking."""
    check(message, tuple)
    if message[0] == INDIRECT:
        _, *location = message
        assert [type(number) for number in location] == [int] * 3
    elif decoder is decode_down and message[0] == FINALIZE:
        assert len(message) == 1
    elif decoder is decode_down:
        kind, releases, batches = message
        assert kind == EXECUTE
        check_keys(releases)
        for batch in batches:
            assert batch, "execute is called for at least one request"
            for key, segment, offset, size, inputs, extras in batch:
                for number in (key, segment, offset, size):
                    check(number, int)
                check_tensors(inputs, 0, size)
                check_extras(extras)
    else:
        kind, releases, all_results = message
        assert kind == RESULTS
        check_keys(releases)
        for key, nanoseconds, kept, blocks, outputs, error, parameters in all_results:
            check(key, int)
            check(nanoseconds, int)
            check(kept, bool)
            check_keys(blocks)
            check_tensors(outputs, 1, math.inf)
            assert all(output[3] < len(blocks) for output in outputs)
            check(parameters, str)
            if error:
                code, text = error
                check(text, str)
                ErrorCode(code)


def check_extras(extras: Any) -> None:
    if not extras:
        return
    request_id, requested, parameters, correlation_id, flags, timeout = extras
    for text in (request_id, parameters):
        check(text, str)
    for number in (*(() if requested is None else requested), flags, timeout):
        check(number, int)
    check(correlation_id, int, str)


def read(decoder: Decoder, data: bytes) -> None:
    try:
        message = decoder(data)
    except ProtocolError:
        return
    check_message(decoder, message)


# ---- the properties ----


@given(ANY)
def test_a_message_survives_the_journey(sent: Tuple[Decoder, Tuple[Any, ...]]) -> None:
    decoder, message = sent
    for data in (pack(message), packer()(message)):
        arrived = decoder(data)
        assert arrived == message
        check_message(decoder, arrived)


@given(st.sampled_from([decode_down, decode_up]), st.binary(max_size=200))
@example(decode_down, b"")
@example(decode_down, b"\x91" * 5000)
@example(decode_down, b"\xdd\xff\xff\xff\xff")
@example(decode_up, b"\xdf\xff\xff\xff\xff")
@example(decode_up, pack((RESULTS, (), ())) + b"\x00")
def test_any_bytes_are_a_message_or_a_protocol_error(decoder: Decoder, data: bytes) -> None:
    read(decoder, data)


@given(ANY, st.data())
def test_a_record_with_other_bytes_is_a_message_or_a_protocol_error(sent: Tuple[Decoder, Tuple[Any, ...]], data: st.DataObject) -> None:
    decoder, message = sent
    record = bytearray(pack(message))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    read(decoder, bytes(record[: data.draw(st.integers(0, len(record)) | st.just(len(record)))]))


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


@settings(max_examples=300)
@given(ANY, st.data())
def test_a_record_with_another_part_is_a_message_or_a_protocol_error(sent: Tuple[Decoder, Tuple[Any, ...]], data: st.DataObject) -> None:
    decoder, message = sent
    decoder(pack(message))  # what was seen before must not make what comes next look familiar
    path = data.draw(st.sampled_from(sorted(places(message))))
    change = data.draw(
        st.one_of(
            ODD.map(lambda odd: lambda _: odd),
            # Equal to what was there, and of another type.
            st.just(lambda part: float(part) if type(part) is int else part),
            st.just(lambda part: bool(part) if part in (0, 1) and type(part) is int else part),
            # Longer or shorter by one.
            st.just(lambda part: (*part, 0) if isinstance(part, tuple) else part),
            st.just(lambda part: part[:-1] if isinstance(part, tuple) else part),
        )
    )
    read(decoder, pack(replaced(message, path, change)))


TENSOR = (0, 11, (2,), 0, 8)
REQUEST = (1, 0, 0, 8, (TENSOR,), ())
OUTPUT = (0, 11, (2,), 0, 0, 8)
RESULT = (1, 5, False, ((0, 0),), (OUTPUT,), (), "")


def down(request: Any) -> Tuple[Any, ...]:
    return EXECUTE, (), ((request,),)


@pytest.mark.parametrize(
    "decoder, message, reason",
    [
        (decode_down, 5, "a message is an array, not int"),
        (decode_down, {"a": 1}, "a message is an array, not dict"),
        (decode_down, (), "a message is an array"),
        (decode_down, (9,), "no record begins with 9 and has 1 parts"),
        (decode_down, (FINALIZE, 0), "no record begins with 2 and has 2 parts"),
        (decode_up, (FINALIZE,), "no record begins with 2 and has 1 parts"),
        (decode_down, (EXECUTE, ()), "malformed record"),
        (decode_up, (RESULTS, (), (), ()), "malformed record"),
        (decode_down, (INDIRECT, 0, "0", 0), "malformed record"),
        (decode_down, (INDIRECT, 0, 0), "malformed record"),
        (decode_down, (EXECUTE, ((0, "0"),), ()), "block 0, '0'"),
        (decode_down, (EXECUTE, (), ((),)), "a batch of no requests"),
        (decode_down, down((1, 0, 0, 7, (TENSOR,), ())), "input 0 ends at 8 of 7"),
        (decode_down, down((1, 0, 0, 8, ((0, 11, (2,), 1, 8),), ())), "input 0 ends at 9 of 8"),
        (decode_down, down((1, 0, 0, 8, {}, ())), "inputs {}"),
        (decode_up, (RESULTS, (), ((*RESULT[:4], {}, (), ""),)), "outputs {}"),
        (decode_down, down((1, 0, 0, 8, ((0, 11, (3,), 0, 8),), ())), r"tensor 0 of shape \(3,\) in 8 bytes"),
        (decode_down, down((1, 0, 0, 8, ((0, 11, (-2,), 0, 8),), ())), "dimension -2 of tensor 0"),
        (decode_down, down((1, 0, 0, 8, ((0, 99, (2,), 0, 8),), ())), "data type 99 of tensor 0"),
        (decode_down, down((1, 0, 0, 8, ((-1, 11, (2,), 0, 8),), ())), "tensor -1 of 8 bytes at 0"),
        (decode_down, down((1, 0, 0, 8, ((0, 13, b"\2", 0, 8),), ())), "shape b'.x02' of tensor 0"),
        (decode_down, down((*REQUEST[:5], ("id", None, "{}", 1.5, 0, 0))), "extras of a request"),
        (decode_down, down((*REQUEST[:5], ("id", None, "{}", 0, None, 0))), "flags or timeout"),
        (decode_down, down((*REQUEST[:5], ("id", ("a",), "{}", 0, 0, 0))), "requested output 'a'"),
        (decode_down, down((*REQUEST[:5], ("id", 0, "{}", 0, 0, 0))), "malformed record"),
        (decode_up, (RESULTS, (), ((*RESULT[:4], ((0, 11, (2,), 1, 0, 8),), (), ""),)), "output 0 in block 1 of 1"),
        (decode_up, (RESULTS, (), ((*RESULT[:5], (99, "text"), ""),)), "99 is not a valid ErrorCode"),
        (decode_up, (RESULTS, (), ((*RESULT[:5], (1, b"text"), ""),)), "text of an error"),
        (decode_up, (RESULTS, (), ((1, 5, 0, *RESULT[3:]),)), "result 1"),
    ],
)
def test_a_malformed_record_is_refused_with_a_reason(decoder: Decoder, message: Any, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decoder(pack(message))


@pytest.mark.parametrize("convert", [float, bool], ids=["float", "bool"])
@pytest.mark.parametrize("decoder, message", [(decode_down, down(REQUEST)), (decode_up, (RESULTS, (), (RESULT,)))])
def test_a_record_equal_to_one_seen_before_is_not_therefore_right(
    decoder: Decoder, message: Tuple[Any, ...], convert: Callable[[int], Any]
) -> None:
    """0 == 0.0 == False, but only one of them is an offset."""
    decoder(pack(message))
    for path in places(message):
        read(decoder, pack(replaced(message, path, lambda part: convert(part) if type(part) is int and part in (0, 1) else part)))


@pytest.mark.parametrize("pack", [pack, packer()])
def test_a_text_that_is_not_unicode_is_told_nevertheless(pack: Callable[[Any], bytes]) -> None:
    """A model's error may quote the name of a file."""
    assert unpack(pack((os.fsdecode(b"caf\xe9"), "é"))) == ("caf\\udce9", "é")


@given(st.binary(max_size=100))
def test_unpack_gives_an_array_or_a_protocol_error(data: bytes) -> None:
    with suppress(ProtocolError):
        assert type(unpack(data)) is tuple
