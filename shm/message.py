"""Messages: what the records of the rings and the datagrams of the control socket say.

All of them are msgpack arrays, positional, with names and data types as small integers agreed at load (half a microsecond to
pack or unpack; a map costs three times that). Records, with () for optional parts left out:

    down  (INDIRECT, segment, offset, nbytes)          the record itself is in that block of the parent's arena
          (EXECUTE, releases, batches)                 each batch is one call of execute: a list of requests
          (FINALIZE,)                                  finish, call finalize, exit
    up    (INDIRECT, segment, offset, nbytes)          the record itself is in that block of the stub's arena
          (RESULTS, releases, results)

    releases  ((segment, offset), ...)                 blocks of the receiver that the sender has done with
    request   (key, segment, offset, nbytes, inputs, extras)             one block holds all inputs of a request
      input   (name, dtype, shape, offset, nbytes)                       name: index in the configuration; offset: in the block
      extras  () or (id, requested names or None, parameters as JSON text, correlation id, flags, timeout in us)
    result    (key, nanoseconds, kept, blocks, outputs, error, parameters)
      kept    the model still views the request's block; a release follows when it no longer does
      blocks  ((segment, offset), ...)                 where the outputs are; each is lent until released
      output  (name, dtype, shape, index in blocks, offset in the block, nbytes)
      error   () or (code, text)

Any bytes are a message or a ProtocolError.
"""

from __future__ import annotations

from enum import IntEnum
from marshal import dumps as marshalled
from typing import Any, Callable, Set, Tuple

import msgpack

from .dtype import BY_CODE, BYTES, element_count
from .errors import ProtocolError

PROTOCOL_VERSION = 1

_REMEMBERED = 1024

_UNICODE_ERRORS = "backslashreplace"
"""Texts of errors and logs may hold what is not Unicode, such as the names of files: they are told as Python's repr tells them."""

_known_tensors: Set[Tuple[bytes, int]] = set()
"""Lists of tensors that were checked before, inputs with the size of their block and outputs with minus their number of blocks. Those of
a model repeat, and looking one up costs half of checking it. Marshalled, because 0.0 and False equal 0, and so would pass for an
offset that was checked."""

INDIRECT, EXECUTE, FINALIZE = 0, 1, 2
RESULTS = 1


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
    """Decodes one message.

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


def decode_down(record: bytes) -> Tuple[Any, ...]:
    """A record for the stub, its structure checked (locations are checked where they are looked up)."""
    message = unpack(record)
    kind = message[0]
    try:
        if kind == EXECUTE:
            _, releases, batches = message
            _check_releases(releases)
            for batch in batches:
                if not batch:
                    raise ValueError("a batch of no requests")
                for request in batch:
                    _check_request(request)
            return message
        if kind == INDIRECT:
            return _checked_indirect(message)
        if kind == FINALIZE and len(message) == 1:
            return message
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"malformed record: {error}") from error
    raise ProtocolError(f"no record begins with {kind!r} and has {len(message)} parts")


def decode_up(record: bytes) -> Tuple[Any, ...]:
    """A record for the parent, its structure checked (locations are checked where they are looked up)."""
    message = unpack(record)
    kind = message[0]
    try:
        if kind == RESULTS:
            _, releases, results = message
            _check_releases(releases)
            for result in results:
                _check_result(result)
            return message
        if kind == INDIRECT:
            return _checked_indirect(message)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"malformed record: {error}") from error
    raise ProtocolError(f"no record begins with {kind!r} and has {len(message)} parts")


def _checked_indirect(message: Tuple[Any, ...]) -> Tuple[Any, ...]:
    _, segment, offset, nbytes = message
    if type(segment) is not int or type(offset) is not int or type(nbytes) is not int:
        raise ValueError(f"{nbytes!r} bytes at {offset!r} of segment {segment!r}")
    return message


def _check_releases(releases: Any) -> None:
    for segment, offset in releases:
        if type(segment) is not int or type(offset) is not int:
            raise ValueError(f"block {segment!r}, {offset!r}")


def _check_request(request: Any) -> None:
    key, segment, offset, size, inputs, extras = request
    if type(key) is not int or type(segment) is not int or type(offset) is not int or type(size) is not int:
        raise ValueError(f"request {key!r} in {size!r} bytes at {offset!r} of segment {segment!r}")
    if (marshalled(inputs, 2), size) not in _known_tensors:
        _check_inputs(inputs, size)
    if extras:
        request_id, requested, parameters, correlation_id, flags, timeout = extras
        if type(request_id) is not str or type(parameters) is not str or type(correlation_id) not in (int, str):
            raise ValueError("extras of a request")
        if type(flags) is not int or type(timeout) is not int:
            raise ValueError("flags or timeout of a request")
        for name in () if requested is None else requested:
            if type(name) is not int:
                raise ValueError(f"requested output {name!r}")


def _check_result(result: Any) -> None:
    key, nanoseconds, kept, blocks, outputs, error, parameters = result
    if type(key) is not int or type(nanoseconds) is not int or type(kept) is not bool or type(parameters) is not str:
        raise ValueError(f"result {key!r}")
    _check_releases(blocks)
    if (marshalled(outputs, 2), -len(blocks)) not in _known_tensors:
        _check_outputs(outputs, len(blocks))
    if error:
        code, text = error
        if type(text) is not str:
            raise ValueError("text of an error")
        ErrorCode(code)


def _check_outputs(outputs: Any, blocks: int) -> None:
    if type(outputs) is not tuple:
        raise ValueError(f"outputs {outputs!r}")
    for name, dtype, shape, block, offset, nbytes in outputs:
        _check_tensor(name, dtype, shape, offset, nbytes)
        if type(block) is not int or not 0 <= block < blocks:
            raise ValueError(f"output {name} in block {block!r} of {blocks}")
    _remember((marshalled(outputs, 2), -blocks))


def _check_inputs(inputs: Any, size: int) -> None:
    if type(inputs) is not tuple:
        raise ValueError(f"inputs {inputs!r}")
    for name, dtype, shape, offset, nbytes in inputs:
        _check_tensor(name, dtype, shape, offset, nbytes)
        if offset + nbytes > size:
            raise ValueError(f"input {name} ends at {offset + nbytes} of {size}")
    _remember((marshalled(inputs, 2), size))


def _remember(known: Tuple[bytes, int]) -> None:
    if len(_known_tensors) >= _REMEMBERED:
        _known_tensors.clear()
    _known_tensors.add(known)


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
    if dtype != BYTES.code and element_count(shape) * BY_CODE[dtype].itemsize != nbytes:
        raise ValueError(f"tensor {name} of shape {shape} in {nbytes} bytes")
