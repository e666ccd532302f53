"""Messages: what the records of the rings and the datagrams of the control socket say.

All of them are msgpack arrays, positional, with names and data types as small integers agreed at load (half a microsecond to
pack or unpack; a map costs three times that). Records, with () for optional parts left out:

    down  (INDIRECT, segment, offset, nbytes)          the record itself is in that block of the parent's arena
          (WORK, releases, batches, replies)           each batch is one call of execute: a list of requests
          (FINALIZE,)                                  finish, call finalize, exit
    up    (INDIRECT, segment, offset, nbytes)          the record itself is in that block of the stub's arena
          (NEWS, releases, results, calls)

    releases  ((segment, offset), ...)                 blocks of the receiver that the sender has done with
    request   (key, flags, ((segment, offset, nbytes), ...), inputs, extras, regions)
      flags     BORROWED: the blocks are another stub's: what is written to them must stay private. DEVICE_OUTPUTS: outputs that are on a
                GPU may stay there
      input     (name, dtype, shape, index in blocks, offset in the block, nbytes)       name: index in the configuration; what is added to
                the requests of sequences comes after the inputs that it has there
      extras    () or (id, requested names or None, parameters as JSON text, correlation id, flags, timeout in us), and the trace of a
                request that is traced
      trace     (number, what is traced, context as JSON text or "")
      regions   () or (reads, writes): what lies in shared memory of the client's
        read    (region, offset, nbytes)               a block of inputs that the receiver copies from there, numbered after blocks
        write   (output, region, offset, nbytes)       where that output goes, and its room there
    result    (key, flags, nanoseconds, kept, blocks, outputs, error, parameters), nanoseconds being what execute took, 0 if it was not called
      flags   FINAL: nothing more is said of the request. RETURNED: execute is over for it. EMPTY: the result holds no response.
              RESCHEDULE: the model asks for the request to be executed again. FAILURE: the error is not a response of the model's, but
              that it failed to make one
      kept    indices of the request's blocks that the model still views when execute is over; a release of each follows
      blocks  ((segment, offset), ...)                 where the outputs are; each is lent until released
      output  (name, dtype, shape, index in blocks, offset in the block, nbytes); for what is in a region of the client's, index
              IN_REGION and offset 0
      error   () or (code, text)
    call      (call, flags, model, version, blocks, inputs, requested names, extras), a request that the model makes; or (call,), which
              cancels it
      flags   STREAM: any number of responses are welcome. BLOCKING: execute cannot go on before this one is answered. HOST_OUTPUTS: the
              outputs are wanted in host memory, wherever they are made
      input   (name as text, dtype, shape, index in blocks, offset in the block, nbytes)
      extras  (id, parameters as JSON text, correlation id, flags, timeout in us), and the trace of a request that this one is part of
    reply     (call, final, blocks, outputs, error, parameters), to a call; outputs with their names as text; or (call,), which asks for it
              once more with all of its inputs in host memory

A block may be of device memory: its segment is then known by a handle (``stublet.shm.cuda``), and holds one tensor.

Any bytes are a message or a ProtocolError.
"""

from __future__ import annotations

import json
from enum import IntEnum
from marshal import dumps as marshalled
from typing import Any, Callable, List, Set, Tuple, TypeVar

import msgpack

from .dtype import BY_CODE, BYTES, MAX_RANK, has_elements
from .errors import ProtocolError

PROTOCOL_VERSION = 5

_REMEMBERED = 1024

_Checked = TypeVar("_Checked", str, Tuple[bytes, int])

_UNICODE_ERRORS = "backslashreplace"
"""Texts of errors and logs may hold what is not Unicode, such as the names of files: they are told as Python's repr tells them."""

_known_named: Set[Tuple[bytes, int]] = set()
"""Lists of tensors with names as text that were checked before, with their number of blocks."""

_known_parameters: Set[str] = set()
"""Parameters of responses and calls that were checked before."""

_known_tensors: Set[Tuple[bytes, int]] = set()
"""Lists of tensors that were checked before, inputs with the size of their block and outputs with the complement of their number of
blocks. Those of a model repeat, and looking one up costs half of checking it. Marshalled, because 0.0 and False equal 0, and so would
pass for an offset that was checked."""

INDIRECT, WORK, FINALIZE = 0, 1, 2
NEWS = 1

FINAL, RETURNED, EMPTY, RESCHEDULE, FAILURE = 1, 2, 4, 8, 16
_RESULT_FLAGS = FINAL | RETURNED | EMPTY | RESCHEDULE | FAILURE

IN_REGION = -1
"""Instead of the index of a block: the output is where the client wanted it, in a region of its own."""

BORROWED, DEVICE_OUTPUTS = 1, 2
_REQUEST_FLAGS = BORROWED | DEVICE_OUTPUTS

STREAM, BLOCKING, HOST_OUTPUTS = 1, 2, 4
_CALL_FLAGS = STREAM | BLOCKING | HOST_OUTPUTS


MOST_ELEMENTS, MOST_NEWS_ELEMENTS = 1 << 20, 1 << 22
"""Of a control message, and of a record: a batch may have thousands of requests, each with dozens of words."""

_LONGEST_ARRAY = 1 << 14


class ErrorCode(IntEnum):
    """``TRITONSERVER_Error_Code``."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


def packer() -> Callable[[Any], bytes]:
    """A function that packs one message; it keeps its buffer, so every thread needs its own or a lock."""
    return msgpack.Packer(unicode_errors=_UNICODE_ERRORS).pack  # type: ignore[no-any-return]


def pack(message: Any) -> bytes:
    """One message, packed."""
    return msgpack.packb(message, unicode_errors=_UNICODE_ERRORS)  # type: ignore[no-any-return]


def unpack(data: bytes) -> Tuple[Any, ...]:
    """Decodes one message, which is short; of others see ``unpack_bounded``.

    Raises:
        ProtocolError: the bytes are not exactly one msgpack array.
    """
    try:
        message = msgpack.unpackb(data, use_list=False)
    except Exception as error:  # msgpack raises a dozen kinds, all of which mean the same here
        raise ProtocolError(f"not a message: {type(error).__name__}: {error}") from error
    if type(message) is not tuple or not message:
        raise ProtocolError(f"a message is an array, not {type(message).__name__}")
    return message


def unpack_bounded(data: bytes, most: int = MOST_ELEMENTS) -> Tuple[Any, ...]:
    """Decodes one message of any length, which must not take much more memory here than it has bytes: an empty map is one byte there and 64
    here, and an array takes all of its memory before its first element is there.

    Args:
        most: elements of all its arrays and maps.

    Raises:
        ProtocolError: the bytes are not exactly one msgpack array, or have more elements.
    """
    left = most

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1 + len(container)
        if left < 0:
            raise ValueError(f"more than {most} elements")
        return container

    bounds = {"max_array_len": _LONGEST_ARRAY, "max_map_len": _LONGEST_ARRAY}
    try:
        message = msgpack.unpackb(data, use_list=False, list_hook=count, object_hook=count, **bounds)
    except Exception as error:
        raise ProtocolError(f"not a message: {type(error).__name__}: {error}") from error
    if type(message) is not tuple or not message:
        raise ProtocolError(f"a message is an array, not {type(message).__name__}")
    return message


def decode_down(record: bytes) -> Tuple[Any, ...]:
    """A record for the stub, its structure checked (locations are checked where they are looked up)."""
    message = unpack(record)
    kind = message[0]
    try:
        if kind == WORK:
            _, releases, batches, replies = message
            _check_blocks(releases)
            for batch in batches:
                if not batch:
                    raise ValueError("a batch of no requests")
                for request in batch:
                    _check_request(request)
            for reply in replies:
                _check_reply(reply)
            return message
        if kind == INDIRECT:
            return _checked_indirect(message)
        if kind == FINALIZE and len(message) == 1:
            return message
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"malformed record: {error}") from error
    raise ProtocolError(f"no record begins with {kind!r} and has {len(message)} parts")


def decode_up(record: bytes, unpack: Callable[[bytes], Tuple[Any, ...]] = unpack) -> Tuple[Any, ...]:
    """A record for the parent, its structure checked (locations are checked where they are looked up)."""
    message = unpack(record)
    kind = message[0]
    try:
        if kind == NEWS:
            _, releases, results, calls = message
            _check_blocks(releases)
            for result in results:
                _check_result(result)
            for call in calls:
                _check_call(call)
            return message
        if kind == INDIRECT:
            return _checked_indirect(message)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"malformed record: {error}") from error
    raise ProtocolError(f"no record begins with {kind!r} and has {len(message)} parts")


def decode_long(record: bytes) -> Tuple[Any, ...]:
    """``decode_up`` for a record that lies in a block, and is as long as the block may be."""
    return decode_up(record, lambda data: unpack_bounded(data, MOST_NEWS_ELEMENTS))


def check_call(call: Tuple[Any, ...]) -> None:
    """Checks a call, as a record has it, that came some other way.

    Raises:
        ProtocolError: it is none.
    """
    try:
        _check_call(call)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"malformed call: {error}") from error


def _checked_indirect(message: Tuple[Any, ...]) -> Tuple[Any, ...]:
    _, segment, offset, nbytes = message
    if type(segment) is not int or type(offset) is not int or type(nbytes) is not int:
        raise ValueError(f"{nbytes!r} bytes at {offset!r} of segment {segment!r}")
    return message


def _check_blocks(blocks: Any) -> None:
    for segment, offset in blocks:
        if type(segment) is not int or type(offset) is not int:
            raise ValueError(f"block {segment!r}, {offset!r}")


def _check_request(request: Any) -> None:
    key, flags, blocks, inputs, extras, regions = request
    if type(key) is not int or type(flags) is not int or flags & ~_REQUEST_FLAGS:
        raise ValueError(f"request {key!r}")
    sizes = []
    for segment, offset, size in blocks:
        if type(segment) is not int or type(offset) is not int or type(size) is not int:
            raise ValueError(f"request {key!r} in {size!r} bytes at {offset!r} of segment {segment!r}")
        sizes.append(size)
    if regions:
        sizes += _check_regions(regions)
    if len(sizes) != 1 or (marshalled(inputs, 2), sizes[0]) not in _known_tensors:
        _check_inputs(inputs, sizes)
    if extras:
        request_id, requested, *rest = extras
        _check_extras(request_id, *rest)
        for name in () if requested is None else requested:
            if type(name) is not int:
                raise ValueError(f"requested output {name!r}")


def _check_regions(regions: Any) -> List[int]:
    """The sizes of the blocks that are to be copied."""
    if type(regions) is not tuple:
        raise ValueError(f"regions {regions!r}")
    reads, writes = regions
    sizes = []
    for region, offset, size in reads:
        _check_place(region, offset, size)
        sizes.append(size)
    for output, region, offset, size in writes:
        _check_place(region, offset, size)
        if type(output) is not int or output < 0:
            raise ValueError(f"output {output!r} in a region")
    return sizes


def _check_place(region: Any, offset: Any, size: Any) -> None:
    if type(region) is not int or type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise ValueError(f"{size!r} bytes at {offset!r} of region {region!r}")


def _check_extras(request_id: Any, parameters: Any, correlation_id: Any, flags: Any, timeout: Any, *trace: Any) -> None:
    if type(request_id) is not str or type(parameters) is not str or type(correlation_id) not in (int, str):
        raise ValueError("extras of a request")
    if type(flags) is not int or type(timeout) is not int:
        raise ValueError("flags or timeout of a request")
    if trace:
        ((number, wanted, context),) = trace
        if type(number) is not int or type(wanted) is not int or type(context) is not str:
            raise ValueError("trace of a request")


def _check_result(result: Any) -> None:
    key, flags, nanoseconds, kept, blocks, outputs, error, parameters = result
    if type(key) is not int or type(nanoseconds) is not int or type(kept) is not tuple or type(parameters) is not str:
        raise ValueError(f"result {key!r}")
    if type(flags) is not int or flags & ~_RESULT_FLAGS:
        raise ValueError(f"flags {flags!r} of a result")
    if parameters and parameters not in _known_parameters:
        _check_parameters(parameters)
    for index in kept:
        if type(index) is not int or index < 0:
            raise ValueError(f"kept block {index!r}")
    _check_blocks(blocks)
    if (marshalled(outputs, 2), ~len(blocks)) not in _known_tensors:
        _check_outputs(outputs, len(blocks))
    if error:
        _check_error(error)


def _check_error(error: Any) -> None:
    code, text = error
    if type(text) is not str:
        raise ValueError("text of an error")
    ErrorCode(code)


def _check_call(call: Any) -> None:
    number, *rest = call
    if type(number) is not int:
        raise ValueError(f"call {number!r}")
    if not rest:
        return
    flags, model, version, blocks, inputs, requested, extras = rest
    if type(flags) is not int or flags & ~_CALL_FLAGS or type(model) is not str or type(version) is not int:
        raise ValueError(f"call {number} of model {model!r} version {version!r}")
    _check_blocks(blocks)
    if (marshalled(inputs, 2), len(blocks)) not in _known_named:
        _check_named(inputs, len(blocks))
    if type(requested) is not tuple:
        raise ValueError(f"requested outputs {requested!r}")
    for name in requested:
        if type(name) is not str:
            raise ValueError(f"requested output {name!r}")
    _check_extras(*extras)
    if extras[1] not in _known_parameters:
        _check_parameters(extras[1])


def _check_parameters(text: str) -> None:
    """Those that a stub sends: others read them, and do not look."""
    try:
        parameters = json.loads(text)
    except RecursionError:
        parameters = None
    if type(parameters) is not dict or not all(isinstance(value, (bool, int, float, str)) for value in parameters.values()):
        raise ValueError(f"parameters {text:.100}")
    _remember(_known_parameters, text)


def _check_reply(reply: Any) -> None:
    call, *rest = reply
    if not rest:
        if type(call) is not int:
            raise ValueError(f"reply to call {call!r}")
        return
    final, blocks, outputs, error, parameters = rest
    if type(call) is not int or type(final) is not bool or type(parameters) is not str:
        raise ValueError(f"reply to call {call!r}")
    for segment, offset, size in blocks:
        if type(segment) is not int or type(offset) is not int or type(size) is not int:
            raise ValueError(f"{size!r} bytes at {offset!r} of segment {segment!r}")
    if (marshalled(outputs, 2), len(blocks)) not in _known_named:
        _check_named(outputs, len(blocks))
    if error:
        _check_error(error)


def _check_named(tensors: Any, blocks: int) -> None:
    """Tensors whose names are text, because they are those of another model."""
    if type(tensors) is not tuple:
        raise ValueError(f"tensors {tensors!r}")
    for name, dtype, shape, block, offset, nbytes in tensors:
        if type(name) is not str:
            raise ValueError(f"name {name!r} of a tensor")
        _check_tensor(0, dtype, shape, offset, nbytes)
        _check_rank(name, shape)
        _check_index(name, block, blocks)
    _remember(_known_named, (marshalled(tensors, 2), blocks))


def _check_outputs(outputs: Any, blocks: int) -> None:
    if type(outputs) is not tuple:
        raise ValueError(f"outputs {outputs!r}")
    for name, dtype, shape, block, offset, nbytes in outputs:
        _check_tensor(name, dtype, shape, offset, nbytes)
        _check_rank(name, shape)
        if type(block) is not int or block != IN_REGION or offset != 0:
            _check_index(name, block, blocks)
    _remember(_known_tensors, (marshalled(outputs, 2), ~blocks))


def _check_index(name: Any, block: Any, blocks: int) -> None:
    if type(block) is not int or not 0 <= block < blocks:
        raise ValueError(f"tensor {name} in block {block!r} of {blocks}")


def _check_inputs(inputs: Any, sizes: List[int]) -> None:
    if type(inputs) is not tuple:
        raise ValueError(f"inputs {inputs!r}")
    for name, dtype, shape, block, offset, nbytes in inputs:
        _check_tensor(name, dtype, shape, offset, nbytes)
        _check_index(name, block, len(sizes))
        if offset + nbytes > sizes[block]:
            raise ValueError(f"input {name} ends at {offset + nbytes} of {sizes[block]}")
    if len(sizes) == 1:
        _remember(_known_tensors, (marshalled(inputs, 2), sizes[0]))


def _remember(known: Set[_Checked], checked: _Checked) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known.add(checked)


def _check_tensor(name: Any, dtype: Any, shape: Any, offset: Any, nbytes: Any) -> None:
    if type(name) is not int or type(offset) is not int or type(nbytes) is not int or name < 0 or offset < 0 or nbytes < 0:
        raise ValueError(f"tensor {name!r} of {nbytes!r} bytes at {offset!r}")
    if type(shape) is not tuple:
        raise ValueError(f"shape {shape!r} of tensor {name}")
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise ValueError(f"dimension {dim!r} of tensor {name}")
    if type(dtype) is not int or dtype not in BY_CODE:
        raise ValueError(f"data type {dtype!r} of tensor {name}")
    if dtype != BYTES.code:
        elements, rest = divmod(nbytes, BY_CODE[dtype].itemsize)
        if rest or not has_elements(shape, elements):
            raise ValueError(f"tensor {name} of shape {shape} in {nbytes} bytes")


def _check_rank(name: Any, shape: Any) -> None:
    if len(shape) > MAX_RANK:
        raise ValueError(f"{len(shape)} dimensions of tensor {name}")
