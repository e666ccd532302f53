"""What other programs hold: elements of BYTES tensors as clients write them, tensors as users write them, answers of servers."""

from __future__ import annotations

import json
from typing import List, Optional

import numpy as np
from stublet.parent.cli import infer_request, tensor_text
from stublet.parent.cli.http_client import Answer, ClientError
from stublet.parent.cli.tensor_text import TensorError
from stublet.shm import bytes_codec
from stublet.shm.bytes_codec import BytesError
from stublet.shm.dtype import BY_NAME, BYTES, DATA_TYPES
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from ..target import Target, pure
from . import http


def bytes_elements(data: bytes) -> None:
    """What tritonclient reads we read, and write as it does; what ends within an element is refused, by everything that counts them."""
    try:
        expected: Optional[List[bytes]] = deserialize_bytes_tensor(data).tolist()
    except Exception:  # a struct.error within a length; it does not see the end of the last element
        expected = None
    try:
        found = bytes_codec.decode(data)
    except BytesError as error:
        assert error.available < (error.needed or bytes_codec.LENGTH_BYTES)
        assert expected is None or bytes_codec.encode(expected) != data
        assert bytes_codec.mismatch(memoryview(data), 1, "x", "m").startswith("incomplete string")
        return
    assert found == expected and bytes_codec.encode(found) == data
    assert bytes_codec.count(memoryview(data)) == len(found)
    assert bytes_codec.mismatch(memoryview(data), len(found), "x", "m") == ""
    assert bytes_codec.mismatch(memoryview(data), len(found) + 1, "x", "m") != ""
    if found:
        assert bytes(serialize_byte_tensor(np.array(found, object)).item()) == data


def text_of_tensor(data: bytes) -> None:
    """The first byte chooses the data type, the second the rank. What is read is a tensor that can be sent, and read again."""
    dtype, rank = DATA_TYPES[data[0] % len(DATA_TYPES)] if data else BYTES, data[1] % 5 if data[1:] else 1
    given = data[2:].decode("utf-8", "replace")
    if given.startswith("@") or given.endswith(".npy"):
        return  # names a file
    try:
        array = tensor_text.read("x", given, dtype, rank)
    except TensorError as error:
        assert str(error).startswith("input 'x'")
        return
    wire = tensor_text.to_wire(array, dtype)
    again = tensor_text.from_wire(wire, dtype, array.shape)
    assert tensor_text.to_wire(again, dtype) == wire and again.shape == array.shape
    json.dumps(tensor_text.to_json(array, dtype))
    tensor_text.show(array)


def answer(data: bytes) -> None:
    """The first line is ``inference-header-content-length`` or "-", the rest an answer of some server. What is in it can be shown."""
    length, _, body = data.partition(b"\n")
    headers = {"inference-header-content-length": length.decode("latin-1")} if length != b"-" else {}
    try:
        result = infer_request._result(Answer(body, headers), 0.0)
    except (TensorError, ClientError):
        return
    infer_request.as_json(result)
    for output in result.outputs:
        assert output.dtype in BY_NAME
        tensor_text.show(output.array)


TARGETS = [
    Target("bytes_elements", pure(bytes_elements), mutations=4000),
    Target("text_of_tensor", pure(text_of_tensor), http.TOKENS),
    Target("answer", pure(answer), http.TOKENS),
]
