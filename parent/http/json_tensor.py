"""Tensors as JSON: the ``data`` of an input to its bytes, and an output's bytes to ``data`` (spec 6.4)."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any, Dict, List, Sequence, Set, Union

import msgspec
import numpy as np

from ...shm import bytes_codec
from ...shm.dtype import BF16, BYTES, FP16, DataType, has_elements
from ..errors import InvalidArgument

MAX_NESTING = 100

_NOT_A = {
    "b": "attempt to access JSON non-boolean as boolean",
    "i": "attempt to access JSON non-signed-integer as signed-integer",
    "u": "attempt to access JSON non-unsigned-integer as unsigned-integer",
    "f": "attempt to access JSON non-number as double",
}
_FITS: Dict[str, Set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
_WIDEST: Dict[str, type] = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float64}
"""What numbers are read as; without it, numpy would make floats of integers on both sides of 2**63."""


def decode_document(data: Union[bytes, bytearray]) -> Any:
    """One JSON document.

    Raises:
        InvalidArgument: malformed (with the position), or nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except RecursionError as error:
        raise InvalidArgument(f"JSON nesting depth exceeds maximum allowed limit of {MAX_NESTING}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    # Triton takes NaN and Infinity, which are not JSON: Python's own decoder does, and it tells where an error is. Given bytes, it would
    # take UTF-16 too.
    try:
        document = json.loads(data.decode())
        json.dumps(document, ensure_ascii=False).encode()
        return document
    except RecursionError as error:
        raise InvalidArgument(f"JSON nesting depth exceeds maximum allowed limit of {MAX_NESTING}") from error
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"failed to parse the request JSON buffer: {error.msg} at {error.pos}") from error
    except UnicodeError as error:
        raise InvalidArgument("failed to parse the request JSON buffer: the text is not valid UTF-8") from error
    except ValueError as error:
        raise InvalidArgument(f"failed to parse the request JSON buffer: {error}") from error


def encode_input(name: str, data: Any, dtype: DataType, shape: Sequence[int]) -> bytes:
    """The bytes of an input given as ``data``, a list that may be nested, in row-major order.

    Raises:
        InvalidArgument: not a list, of another number of elements than ``shape`` has, or elements that are not of ``dtype``.
    """
    if dtype in (FP16, BF16):
        raise InvalidArgument(f"receiving {dtype.name} data via JSON is not supported. Please use the binary data format for input {name}")
    if not isinstance(data, list):
        raise InvalidArgument("Unable to parse 'data': attempt to access JSON non-array as array")
    kinds = _kinds(data)
    if dtype is BYTES:
        return _encode_strings(name, data, shape)
    assert dtype.numpy is not None
    kind = dtype.numpy.kind
    if not kinds <= _FITS[kind]:
        raise InvalidArgument(f"Unable to parse 'data': {_NOT_A[kind]}")
    try:
        array = _as_array(data, _WIDEST[kind])
    except OverflowError:
        array = np.array(_flat(data), object)
    if not has_elements(shape, array.size):
        raise InvalidArgument("Unable to parse 'data': Shape does not match true shape of 'data' field")
    if kind in "iu" and array.size:
        limits = np.iinfo(dtype.numpy)
        least, most = int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            wrong = least if least < limits.min else most
            raise InvalidArgument(f"Unable to parse 'data': {wrong} of input '{name}' is out of the range of {dtype.name}")
    try:
        with np.errstate(over="ignore"):  # what is too large for FP32 is infinite there
            return array.astype(dtype.numpy).tobytes()
    except OverflowError as error:
        raise InvalidArgument(f"Unable to parse 'data': an integer of input '{name}' is out of the range of {dtype.name}") from error


def _as_array(data: List[Any], dtype: type) -> np.ndarray:
    try:
        return np.array(data, dtype)
    except (TypeError, ValueError):
        # Nested unevenly: Triton reads such data flat.
        return np.array(_flat(data), dtype)


def _flat(data: List[Any]) -> List[Any]:
    flat: List[Any] = []
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            flat.append(item)
        else:
            stack.pop()
    return flat


def _kinds(data: List[Any]) -> Set[type]:
    """The types of the elements. An array of them does not tell: booleans among numbers become numbers in it."""
    kinds: Set[type] = set()
    for _ in range(MAX_NESTING):
        found = set(map(type, data))
        kinds |= found
        if list not in found:
            return kinds - {list}
        data = list(chain.from_iterable(data if len(found) == 1 else [item for item in data if type(item) is list]))
    raise InvalidArgument(f"JSON nesting depth exceeds maximum allowed limit of {MAX_NESTING}")


def _encode_strings(name: str, data: List[Any], shape: Sequence[int]) -> bytes:
    items = _flat(data)
    if not has_elements(shape, len(items)):
        raise InvalidArgument("Unable to parse 'data': Shape does not match true shape of 'data' field")
    if not all(isinstance(item, str) for item in items):
        raise InvalidArgument("Unable to parse JSON bytes array: attempt to access JSON non-string as string")
    return bytes_codec.encode([item.encode() for item in items])


def decode_output(name: str, wire: bytes, dtype: DataType) -> bytes:
    """The JSON text of an output's ``data``, a flat list. NaN and infinities are written as Triton writes them.

    Raises:
        InvalidArgument: FP16 and BF16, and strings that are not UTF-8, have no JSON form.
    """
    if dtype in (FP16, BF16):
        raise InvalidArgument(f"sending {dtype.name} data via JSON is not supported. Please use the binary data format for output {name}")
    if dtype is BYTES:
        try:
            return msgspec.json.encode([item.decode() for item in bytes_codec.decode(wire)])
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"output '{name}' has strings that are not UTF-8. Please use the binary data format for output {name}"
            ) from error
    array = np.frombuffer(wire, dtype.numpy)
    items = array.tolist()
    if array.dtype.kind == "f" and not all(map(math.isfinite, items)):
        return json.dumps(items, separators=(",", ":")).encode()
    return msgspec.json.encode(items)
