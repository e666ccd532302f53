"""Tensors as a user of the command line writes and reads them: JSON, ``.npy`` files, and text for the eye."""

from __future__ import annotations

import json
import os
from typing import Any, Sequence

import numpy as np

from ...shm.bytes_codec import decode, encode
from ...shm.dtype import BF16, BY_NAME, BYTES, DataType

_FILE = "@"
_SHOWN = 40
_LONGEST = 60


class TensorError(Exception):
    """What was given is not the tensor that is wanted; the text says why."""


def read(name: str, given: str, dtype: DataType, rank: int) -> np.ndarray:
    """The tensor that ``given`` describes: JSON, or the path of an ``.npy`` file, or ``@`` and the path of a file with JSON.

    Args:
        name: of the input, for errors.
        rank: of the input. A single number, text or truth value is taken for a tensor of that rank with one element.

    Returns:
        An array of the data type; BF16 as float32, BYTES as objects, each of them bytes.

    Raises:
        TensorError: it cannot be read, or does not hold what is wanted.
    """
    try:
        if given.startswith(_FILE):
            with open(given[len(_FILE) :], encoding="utf-8") as file:
                found = _from_json(json.load(file))
        elif given.endswith(".npy"):
            found = np.load(given, allow_pickle=False)
        else:
            found = _from_json(_document(given))
    except OSError as error:
        raise TensorError(f"input '{name}': {error.filename or given}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TensorError(f"input '{name}': {given[:_LONGEST]} cannot be read: {error}") from error
    if found.ndim == 0:
        found = found.reshape((1,) * rank)
    try:
        return _as(found, dtype)
    except ValueError as error:
        raise TensorError(f"input '{name}' wants {dtype.name}, {error}") from error


def to_wire(array: np.ndarray, dtype: DataType) -> bytes:
    """The bytes of a tensor in the protocol's binary form."""
    if dtype is BYTES:
        return encode(array.reshape(-1).tolist())
    if dtype is BF16:
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array).tobytes()


def to_json(array: np.ndarray, dtype: DataType) -> Any:
    """The data of a tensor in the protocol's JSON form."""
    flat = array.reshape(-1).tolist()
    return [item.decode() for item in flat] if dtype is BYTES else flat


def from_wire(data: bytes, dtype: DataType, shape: Sequence[int]) -> np.ndarray:
    """The tensor that a server sent, as ``read`` returns it.

    Raises:
        TensorError: the bytes do not make that tensor.
    """
    try:
        if dtype is BYTES:
            items = np.empty(len(elements := decode(data)), object)
            items[:] = elements
            return items.reshape(shape)
        if dtype is BF16:
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        return np.frombuffer(data, dtype.numpy).reshape(shape)
    except ValueError as error:
        raise TensorError(f"{len(data)} bytes are no {dtype.name} tensor of shape {list(shape)}: {error}") from error


def from_json(data: Any, dtype: DataType, shape: Sequence[int]) -> np.ndarray:
    """The tensor that a server sent as JSON."""
    try:
        return _as(_from_json(data), dtype).reshape(shape)
    except ValueError as error:
        raise TensorError(f"the data are no {dtype.name} tensor of shape {list(shape)}: {error}") from error


def save(array: np.ndarray, path: str) -> None:
    """Writes a tensor to a ``.npy`` file or, for any other name, as JSON.

    Raises:
        TensorError: it cannot be written so.
    """
    try:
        if not path.endswith(".npy"):
            with open(path, "w", encoding="utf-8") as file:
                json.dump(nested(array), file, ensure_ascii=False)
            return
        if array.dtype == object:
            texts = array.astype(np.bytes_)
            if not np.array_equal(texts, array):
                raise TensorError(f"{path}: strings that end with zero bytes cannot be in an .npy file; write them to a .json file")
            array = texts
        np.save(path, array)
    except OSError as error:
        raise TensorError(f"{path}: {error.strerror}") from error


def nested(array: np.ndarray) -> Any:
    """The values as nested lists; strings as text, with what is not UTF-8 as ``\\xff``."""
    if array.dtype == object:
        texts = [item.decode("utf-8", "backslashreplace") for item in array.reshape(-1)]
        return np.array(texts, object).reshape(array.shape).tolist()
    return array.tolist()


def show(array: np.ndarray) -> str:
    """The values, or the first and last of many."""
    if array.dtype == object:
        array = np.array([_short(item) for item in array.reshape(-1)], object).reshape(array.shape)
        return np.array2string(array, threshold=_SHOWN, edgeitems=3, separator=", ", formatter={"all": str})
    return np.array2string(array, threshold=_SHOWN, edgeitems=3, separator=", ")


def data_type(name: str) -> DataType:
    """The data type of that name.

    Raises:
        TensorError: there is none.
    """
    if name not in BY_NAME:
        raise TensorError(f"the server names a data type that is not known here: '{name}'")
    return BY_NAME[name]


def _document(given: str) -> Any:
    try:
        return json.loads(given)
    except ValueError:
        if os.path.exists(given):
            raise ValueError(f"it is neither JSON nor an .npy file (for a file with JSON, write {_FILE}{given})") from None
        raise


def _from_json(document: Any) -> np.ndarray:
    """An array of the data, of objects for strings.

    Raises:
        ValueError: rows differ in length, or it is not all numbers, all truth values or all strings.
    """
    found = np.array(document)
    if found.dtype.kind == "U" or (found.dtype == object and found.size):
        found = np.array(document, object)
        if not all(isinstance(item, str) for item in found.reshape(-1)):
            raise ValueError("it is not an array of numbers, of truth values or of strings")
    return found


def _as(found: np.ndarray, dtype: DataType) -> np.ndarray:
    """The array as one of that data type.

    Raises:
        ValueError: that would change what is in it, other than by rounding.
    """
    if dtype is BYTES:
        if found.dtype.kind not in "USO" and found.size:
            raise ValueError(f"not {found.dtype}")
        items = np.empty(found.size, object)
        items[:] = [item.encode() if isinstance(item, str) else bytes(item) for item in found.reshape(-1)]
        return items.reshape(found.shape)
    wanted = np.dtype(np.float32) if dtype is BF16 else dtype.numpy
    assert wanted is not None
    if found.size == 0:
        return found.astype(wanted)
    if found.dtype.kind not in "biuf" or (found.dtype.kind == "b") != (wanted.kind == "b"):
        raise ValueError(f"not {'strings' if found.dtype.kind in 'USO' else found.dtype}")
    with np.errstate(all="ignore"):
        converted = found.astype(wanted)
    if wanted.kind in "iu":
        # Back again, because numpy compares integers of 64 bits with floats as floats.
        with np.errstate(all="ignore"):
            different = (converted.astype(found.dtype) != found) | ((converted < 0) != (found < 0))
        if different.any():
            raise ValueError(f"and {found[different].reshape(-1)[0]} is none")
    return converted


def _short(item: bytes) -> str:
    text = json.dumps(item.decode("utf-8", "backslashreplace"), ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(item)} bytes)"
