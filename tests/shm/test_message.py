"""Messages: any bytes are a message, every part of it as documented, or a ProtocolError."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stublet.shm import message as message_module
from stublet.shm.dtype import BY_CODE, BYTES
from stublet.shm.errors import ProtocolError
from stublet.shm.message import (  # fmt: skip
    BLOCKING,
    EMPTY,
    FAILURE,
    FINAL,
    FINALIZE,
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
    pack,
    packer,
    unpack,
)

Decoder = Callable[[bytes], Tuple[Any, ...]]

# ---- messages as they should be ----

NUMBER = st.integers(0, 2**40)
KEY = st.tuples(NUMBER, NUMBER)
TEXT = st.text(max_size=5)
NAME = st.integers(0, 9)


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
CALL_EXTRAS = st.tuples(TEXT, TEXT, CORRELATION, st.integers(0, 3), NUMBER)
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
    return draw(NUMBER), draw(st.booleans()), tuple(blocks), inputs, draw(EXTRAS), regions


@st.composite
def results(draw: st.DrawFn) -> Tuple[Any, ...]:
    flags = draw(st.integers(0, FINAL | RETURNED | EMPTY | RESCHEDULE | FAILURE))
    blocks = draw(several(KEY))
    outputs = draw(tensors(NAME, len(blocks)))
    if draw(st.booleans()):
        outputs = tuple((name, dtype, shape, IN_REGION, 0, nbytes) for name, dtype, shape, _, _, nbytes in outputs)
    return draw(NUMBER), flags, draw(NUMBER), draw(several(NAME)), blocks, outputs, draw(ERROR), draw(TEXT)


@st.composite
def calls(draw: st.DrawFn) -> Tuple[Any, ...]:
    if draw(st.booleans()):
        return (draw(NUMBER),)
    blocks = draw(several(KEY))
    inputs = draw(tensors(TEXT, len(blocks)))
    flags, version = draw(st.integers(0, STREAM | BLOCKING)), draw(st.integers(-1, 9))
    return draw(NUMBER), flags, draw(TEXT), version, blocks, inputs, draw(several(TEXT)), draw(CALL_EXTRAS)


@st.composite
def replies(draw: st.DrawFn) -> Tuple[Any, ...]:
    blocks = draw(several(st.tuples(NUMBER, NUMBER, NUMBER)))
    outputs = draw(tensors(TEXT, len(blocks)))
    return draw(NUMBER), draw(st.booleans()), blocks, outputs, draw(ERROR), draw(TEXT)


INDIRECTS = st.tuples(st.just(INDIRECT), NUMBER, NUMBER, NUMBER)
DOWN = st.one_of(
    INDIRECTS, st.just((FINALIZE,)), st.tuples(st.just(WORK), several(KEY), several(several(requests(), at_least=1)), several(replies()))
)
UP = st.one_of(INDIRECTS, st.tuples(st.just(NEWS), several(KEY), several(results()), several(calls())))
ANY = st.tuples(st.just(decode_down), DOWN) | st.tuples(st.just(decode_up), UP)

# ---- what a reader relies on ----


def check(value: Any, *kinds: type) -> None:
    assert type(value) in kinds, value


def check_numbers(*values: Any) -> None:
    for value in values:
        check(value, int)


def check_tensors(tensors: Any, name_kind: type, sizes: Sequence[float], in_region: bool = False) -> None:
    """``sizes``: of the blocks. ``in_region``: whether there may be one in none."""
    check(tensors, tuple)
    hash(tensors)
    for name, dtype, shape, block, offset, nbytes in tensors:
        check(name, name_kind)
        check(shape, tuple)
        for number in (dtype, *shape, offset, nbytes, *([name] if name_kind is int else [])):
            check(number, int)
            assert number >= 0
        check(block, int)
        assert block >= (IN_REGION if in_region else 0)
        if dtype != BYTES.code:
            assert math.prod(shape) * BY_CODE[dtype].itemsize == nbytes
        assert offset == 0 if block == IN_REGION else offset + nbytes <= sizes[block]


def check_keys(keys: Any) -> int:
    for segment, offset in keys:
        check_numbers(segment, offset)
    return len(keys)


def check_places(blocks: Any) -> List[int]:
    """The sizes of blocks that are named with them."""
    for segment, offset, size in blocks:
        check_numbers(segment, offset, size)
    return [size for _, _, size in blocks]


def check_regions(regions: Any) -> List[int]:
    if not regions:
        return []
    check(regions, tuple)
    reads, writes = regions
    for output, region, offset, size in writes:
        check_numbers(output, region, offset, size)
        assert min(output, offset, size) >= 0
    assert all(min(offset, size) >= 0 for _, offset, size in reads)
    return check_places(reads)


def check_message(decoder: Decoder, message: Tuple[Any, ...]) -> None:
    """The documented structure, which the readers take apart without looking."""
    check(message, tuple)
    if message[0] == INDIRECT:
        _, segment, offset, nbytes = message
        check_numbers(segment, offset, nbytes)
    elif decoder is decode_down and message[0] == FINALIZE:
        assert len(message) == 1
    elif decoder is decode_down:
        kind, releases, batches, all_replies = message
        assert kind == WORK
        check_keys(releases)
        for batch in batches:
            assert batch, "execute is called for at least one request"
            for key, borrowed, blocks, inputs, extras, regions in batch:
                check(key, int)
                check(borrowed, bool)
                check_tensors(inputs, int, check_places(blocks) + check_regions(regions))
                check_extras(extras)
        for reply in all_replies:
            check_reply(*reply)
    else:
        kind, releases, all_results, all_calls = message
        assert kind == NEWS
        check_keys(releases)
        for result in all_results:
            check_result(*result)
        for call in all_calls:
            check_call(*call)


def check_result(key: Any, flags: Any, took: Any, kept: Any, blocks: Any, outputs: Any, error: Any, parameters: Any) -> None:
    check_numbers(key, flags, took, *kept)
    check(kept, tuple)
    assert 0 <= flags <= 31 and all(index >= 0 for index in kept)
    check_tensors(outputs, int, [math.inf] * check_keys(blocks), in_region=True)
    check(parameters, str)
    check_error(error)


def check_call(number: Any, *call: Any) -> None:
    check(number, int)
    if call:
        flags, model, version, blocks, inputs, requested, extras = call
        check_numbers(flags, version)
        assert 0 <= flags <= 3
        check_tensors(inputs, str, [math.inf] * check_keys(blocks))
        request_id, parameters, correlation_id, sequence, timeout = extras
        for text in (model, *requested, request_id, parameters):
            check(text, str)
        check(correlation_id, int, str)
        check_numbers(sequence, timeout)


def check_reply(call: Any, final: Any, blocks: Any, outputs: Any, error: Any, parameters: Any) -> None:
    check(call, int)
    check(final, bool)
    check_tensors(outputs, str, [math.inf] * len(check_places(blocks)))
    check(parameters, str)
    check_error(error)


def check_error(error: Any) -> None:
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
    check_numbers(*(() if requested is None else requested), flags, timeout)
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
@example(decode_up, pack((NEWS, (), (), ())) + b"\x00")
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


TENSOR = (0, 11, (2,), 0, 0, 8)
NAMED = ("x", *TENSOR[1:])
REQUEST = (1, False, ((0, 0, 8),), (TENSOR,), (), ())
REGIONS = (((5, 64, 8),), ((0, 5, 128, 8),))
RESULT = (1, FINAL | RETURNED, 5, (), ((0, 0),), (TENSOR,), (), "")
CALL = (1, 0, "model", -1, ((0, 0),), (NAMED,), ("y",), ("id", "{}", 0, 0, 0))
REPLY = (1, True, ((0, 0, 8),), (NAMED,), (), "")
EXTENDED = ("id", None, "{}", 0, 0, 0)


def down(request: Any = REQUEST, reply: Any = REPLY) -> Tuple[Any, ...]:
    return WORK, ((0, 0),), ((request,),), (reply,)


def up(result: Any = RESULT, call: Any = CALL) -> Tuple[Any, ...]:
    return NEWS, ((0, 0),), (result,), (call,)


def but(row: Tuple[Any, ...], index: int, value: Any) -> Tuple[Any, ...]:
    """The row with one part replaced."""
    return (*row[:index], value, *row[index + 1 :])


def of(tensor: Tuple[Any, ...], index: int, value: Any) -> Tuple[Any, ...]:
    """One tensor, with one part replaced."""
    return (but(tensor, index, value),)


@pytest.mark.parametrize(
    "decoder, message",
    [
        (decode_down, down()),
        (decode_down, down(but(REQUEST, 1, True))),
        (decode_down, down(but(REQUEST, 4, EXTENDED))),
        (decode_down, down(but(REQUEST, 5, REGIONS))),
        (decode_down, down((*REQUEST[:2], (), *REQUEST[3:5], REGIONS))),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, IN_REGION)))),
        (decode_up, up()),
        (decode_up, up(call=(1,))),
    ],
)
def test_the_rows_are_right_before_something_in_them_is_changed(decoder: Decoder, message: Tuple[Any, ...]) -> None:
    assert decoder(pack(message)) == message


@pytest.mark.parametrize(
    "decoder, message, reason",
    [
        (decode_down, 5, "a message is an array, not int"),
        (decode_down, {"a": 1}, "a message is an array, not dict"),
        (decode_down, (), "a message is an array"),
        (decode_down, (9,), "no record begins with 9 and has 1 parts"),
        (decode_down, (FINALIZE, 0), "no record begins with 2 and has 2 parts"),
        (decode_up, (FINALIZE,), "no record begins with 2 and has 1 parts"),
        (decode_down, (WORK, (), ()), "malformed record"),
        (decode_down, (WORK, (), (), (), ()), "malformed record"),
        (decode_up, (NEWS, (), ()), "malformed record"),
        (decode_up, (NEWS, (), (), (), ()), "malformed record"),
        (decode_down, (INDIRECT, 0, "0", 0), "malformed record"),
        (decode_up, (INDIRECT, 0, 0, 0.0), "malformed record"),
        (decode_down, (INDIRECT, 0, 0), "malformed record"),
        (decode_down, (WORK, ((0, "0"),), (), ()), "block 0, '0'"),
        (decode_up, (NEWS, ((0, None),), (), ()), "block 0, None"),
        (decode_up, (NEWS, ((0, 0, 0),), (), ()), "malformed record"),
        (decode_up, (NEWS, 0, (), ()), "malformed record"),
        # requests
        (decode_down, (WORK, (), ((),), ()), "a batch of no requests"),
        (decode_down, (WORK, (), (5,), ()), "malformed record"),
        (decode_down, down(REQUEST[:5]), "malformed record"),
        (decode_down, down(but(REQUEST, 0, "1")), "request '1'"),
        (decode_down, down(but(REQUEST, 1, 0)), "request 1"),
        (decode_down, down(but(REQUEST, 2, ((0, 0),))), "malformed record"),
        (decode_down, down(but(REQUEST, 2, ((0, 0, "8"),))), "request 1 in '8' bytes at 0 of segment 0"),
        (decode_down, down(but(REQUEST, 2, ((0, 0, 7),))), "input 0 ends at 8 of 7"),
        (decode_down, down(but(REQUEST, 2, ())), "tensor 0 in block 0 of 0"),
        (decode_down, down(but(REQUEST, 2, ((0, 0, 7), (0, 0, 8)))), "input 0 ends at 8 of 7"),
        (decode_down, down(but(REQUEST, 3, {})), "inputs {}"),
        (decode_down, down(but(REQUEST, 3, (TENSOR[:5],))), "malformed record"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 4, 1))), "input 0 ends at 9 of 8"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 3, 1))), "tensor 0 in block 1 of 1"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 3, -1))), "tensor 0 in block -1 of 1"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 3, False))), "tensor 0 in block False of 1"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 2, (3,)))), r"tensor 0 of shape \(3,\) in 8 bytes"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 2, (-2,)))), "dimension -2 of tensor 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 1, 99))), "data type 99 of tensor 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 0, -1))), "tensor -1 of 8 bytes at 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 0, "x"))), "tensor 'x' of 8 bytes at 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 4, -8))), "tensor 0 of 8 bytes at -8"),
        (decode_down, down(but(REQUEST, 3, ((0, 13, b"\2", 0, 0, 8),))), "shape b'.x02' of tensor 0"),
        (decode_down, down(but(REQUEST, 4, EXTENDED[:5])), "malformed record"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 0, 5))), "extras of a request"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 1, ("a",)))), "requested output 'a'"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 1, 0))), "malformed record"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 2, None))), "extras of a request"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 3, 1.5))), "extras of a request"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 4, None))), "flags or timeout"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 5, False))), "flags or timeout"),
        (decode_down, down(but(REQUEST, 5, {"a": 0, "b": 1})), "regions {.a.: 0"),
        (decode_down, down(but(REQUEST, 5, ((),))), "malformed record"),
        (decode_down, down(but(REQUEST, 5, (5, ()))), "malformed record"),
        (decode_down, down(but(REQUEST, 5, (((5, 64),), ()))), "malformed record"),
        (decode_down, down(but(REQUEST, 5, ((("5", 64, 8),), ()))), "8 bytes at 64 of region '5'"),
        (decode_down, down(but(REQUEST, 5, (((5, -1, 8),), ()))), "8 bytes at -1 of region 5"),
        (decode_down, down(but(REQUEST, 5, (((5, 64, True),), ()))), "True bytes at 64 of region 5"),
        (decode_down, down(but(REQUEST, 5, ((), ((0, 5, 64, -8),)))), "-8 bytes at 64 of region 5"),
        (decode_down, down(but(REQUEST, 5, ((), ((-1, 5, 64, 8),)))), "output -1 in a region"),
        (decode_down, down(but(REQUEST, 5, ((), ({"a": 5},)))), "malformed record"),
        (decode_down, down((*REQUEST[:2], (), *REQUEST[3:5], (((5, 64, 7),), ()))), "input 0 ends at 8 of 7"),
        # replies
        (decode_down, down(reply=REPLY[:5]), "malformed record"),
        (decode_down, down(reply=but(REPLY, 0, None)), "reply to call None"),
        (decode_down, down(reply=but(REPLY, 1, 1)), "reply to call 1"),
        (decode_down, down(reply=but(REPLY, 2, ((0, 0),))), "malformed record"),
        (decode_down, down(reply=but(REPLY, 2, ((0, "0", 8),))), "8 bytes at '0' of segment 0"),
        (decode_down, down(reply=but(REPLY, 2, ())), "tensor x in block 0 of 0"),
        (decode_down, down(reply=but(REPLY, 3, {})), "tensors {}"),
        (decode_down, down(reply=but(REPLY, 3, (TENSOR,))), "name 0 of a tensor"),
        (decode_down, down(reply=but(REPLY, 3, of(NAMED, 5, 9))), "in 9 bytes"),
        (decode_down, down(reply=but(REPLY, 4, (99, "text"))), "99 is not a valid ErrorCode"),
        (decode_down, down(reply=but(REPLY, 4, (1,))), "malformed record"),
        (decode_down, down(reply=but(REPLY, 5, None)), "reply to call 1"),
        # results
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, -2))), "tensor 0 in block -2 of 1"),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, -1.0))), "tensor 0 in block -1.0 of 1"),
        (decode_up, up(but(RESULT, 5, of(of(TENSOR, 3, IN_REGION)[0], 4, 8))), "tensor 0 in block -1 of 1"),
        (decode_up, up(RESULT[:7]), "malformed record"),
        (decode_up, up(but(RESULT, 0, 1.0)), "result 1.0"),
        (decode_up, up(but(RESULT, 1, 32)), "flags 32 of a result"),
        (decode_up, up(but(RESULT, 1, -1)), "flags -1 of a result"),
        (decode_up, up(but(RESULT, 1, True)), "flags True of a result"),
        (decode_up, up(but(RESULT, 2, "5")), "result 1"),
        (decode_up, up(but(RESULT, 3, False)), "result 1"),
        (decode_up, up(but(RESULT, 3, (-1,))), "kept block -1"),
        (decode_up, up(but(RESULT, 3, ("0",))), "kept block '0'"),
        (decode_up, up(but(RESULT, 4, ((0, 0.0),))), "block 0, 0.0"),
        (decode_up, up(but(RESULT, 4, ())), "tensor 0 in block 0 of 0"),
        (decode_up, up(but(RESULT, 5, {})), "outputs {}"),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, 1))), "tensor 0 in block 1 of 1"),
        (decode_up, up(but(RESULT, 5, (NAMED,))), "tensor 'x' of 8 bytes"),
        (decode_up, up(but(RESULT, 6, (99, "text"))), "99 is not a valid ErrorCode"),
        (decode_up, up(but(RESULT, 6, (1, b"text"))), "text of an error"),
        (decode_up, up(but(RESULT, 6, 5)), "malformed record"),
        (decode_up, up(but(RESULT, 7, None)), "result 1"),
        # calls
        (decode_up, up(call=()), "malformed record"),
        (decode_up, up(call=("1",)), "call '1'"),
        (decode_up, up(call=(True,)), "call True"),
        (decode_up, up(call=CALL[:7]), "malformed record"),
        (decode_up, up(call=but(CALL, 1, 4)), "call 1 of model 'model' version -1"),
        (decode_up, up(call=but(CALL, 1, False)), "call 1 of model 'model' version -1"),
        (decode_up, up(call=but(CALL, 2, b"model")), "call 1 of model b'model' version -1"),
        (decode_up, up(call=but(CALL, 3, None)), "call 1 of model 'model' version None"),
        (decode_up, up(call=but(CALL, 4, ((0,),))), "malformed record"),
        (decode_up, up(call=but(CALL, 5, (TENSOR,))), "name 0 of a tensor"),
        (decode_up, up(call=but(CALL, 5, of(NAMED, 3, 1))), "tensor x in block 1 of 1"),
        (decode_up, up(call=but(CALL, 5, None)), "tensors None"),
        (decode_up, up(call=but(CALL, 6, ("y", 0))), "requested output 0"),
        (decode_up, up(call=but(CALL, 6, None)), "malformed record"),
        (decode_up, up(call=but(CALL, 7, ())), "malformed record"),
        (decode_up, up(call=but(CALL, 7, ("id", None, 0, 0, 0))), "extras of a request"),
        (decode_up, up(call=but(CALL, 7, ("id", "{}", None, 0, 0))), "extras of a request"),
        (decode_up, up(call=but(CALL, 7, ("id", "{}", 0, "0", 0))), "flags or timeout"),
        (decode_up, up(call=but(CALL, 7, ("id", "{}", 0, 0, True))), "flags or timeout"),
    ],
)
def test_a_malformed_record_is_refused_with_a_reason(decoder: Decoder, message: Any, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decoder(pack(message))


@pytest.mark.parametrize("convert", [float, bool], ids=["float", "bool"])
@pytest.mark.parametrize("decoder, message", [(decode_down, down()), (decode_up, up())])
def test_a_record_equal_to_one_seen_before_is_not_therefore_right(
    decoder: Decoder, message: Tuple[Any, ...], convert: Callable[[int], Any]
) -> None:
    """0 == 0.0 == False, but only one of them is an offset."""
    decoder(pack(message))
    for path in places(message):
        read(decoder, pack(replaced(message, path, lambda part: convert(part) if type(part) is int and part in (0, 1) else part)))


def test_inputs_seen_before_are_not_therefore_right_as_outputs() -> None:
    """Inputs in a block of no bytes, and outputs in none."""
    nothing = ((0, 11, (0,), 0, 0, 0),)
    decode_down(pack(down((1, False, ((0, 0, 0),), nothing, (), ()))))
    with pytest.raises(ProtocolError, match="tensor 0 in block 0 of 0"):
        decode_up(pack(up((1, FINAL, 5, (), (), nothing, (), ""))))


def test_what_is_remembered_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_module, "_REMEMBERED", 10)
    message_module._known_tensors.clear()
    for size in range(8, 40):
        decode_down(pack(down(but(REQUEST, 2, ((0, 0, size),)))))
        assert 0 < len(message_module._known_tensors) <= 10


@pytest.mark.parametrize("pack", [pack, packer()])
def test_a_text_that_is_not_unicode_is_told_nevertheless(pack: Callable[[Any], bytes]) -> None:
    """A model's error may quote the name of a file."""
    assert unpack(pack((os.fsdecode(b"caf\xe9"), "é"))) == ("caf\\udce9", "é")


@given(st.binary(max_size=100))
def test_unpack_gives_an_array_or_a_protocol_error(data: bytes) -> None:
    with suppress(ProtocolError):
        assert type(unpack(data)) is tuple
