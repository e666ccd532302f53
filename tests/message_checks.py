"""What a reader relies on: every part of a message is as documented."""

from __future__ import annotations

import json
import math
from typing import Any, Callable, List, Sequence, Tuple

from stublet.shm.dtype import BY_CODE, BYTES
from stublet.shm.errors import ProtocolError
from stublet.shm.message import FINALIZE, IN_REGION, INDIRECT, NEWS, WORK, ErrorCode, decode_down

Decoder = Callable[[bytes], Tuple[Any, ...]]


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
            for key, flags, blocks, inputs, extras, regions in batch:
                check_numbers(key, flags)
                assert 0 <= flags <= 3
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
    if parameters:
        check_parameters(parameters)
    check_error(error)


def check_call(number: Any, *call: Any) -> None:
    check(number, int)
    if call:
        flags, model, version, blocks, inputs, requested, extras = call
        check_numbers(flags, version)
        assert 0 <= flags <= 7
        check_tensors(inputs, str, [math.inf] * check_keys(blocks))
        request_id, parameters, correlation_id, sequence, timeout, *trace = extras
        for text in (model, *requested, request_id, parameters):
            check(text, str)
        check_parameters(parameters)
        check(correlation_id, int, str)
        check_numbers(sequence, timeout)
        check_trace(*trace)


def check_parameters(text: str) -> None:
    for value in json.loads(text).values():
        check(value, bool, int, float, str)


def check_reply(call: Any, *reply: Any) -> None:
    check(call, int)
    if not reply:
        return
    final, blocks, outputs, error, parameters = reply
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
    request_id, requested, parameters, correlation_id, flags, timeout, *trace = extras
    for text in (request_id, parameters):
        check(text, str)
    check_numbers(*(() if requested is None else requested), flags, timeout)
    check(correlation_id, int, str)
    check_trace(*trace)


def check_trace(*traces: Any) -> None:
    assert len(traces) <= 1
    for number, wanted, context in traces:
        check_numbers(number, wanted)
        check(context, str)


def read(decoder: Decoder, data: bytes) -> None:
    try:
        message = decoder(data)
    except ProtocolError:
        return
    check_message(decoder, message)
