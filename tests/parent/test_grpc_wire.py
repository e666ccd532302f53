"""Messages taken apart and put together without protobuf's copies are what protobuf makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from stublet.parent.grpc.messages import pb
from stublet.parent.grpc.wire import prefix, split


@st.composite
def requests(draw: st.DrawFn) -> Any:
    message = pb.ModelInferRequest(model_name=draw(st.text(max_size=200)), id=draw(st.text(max_size=200)))
    for name in draw(st.lists(st.text(max_size=5), max_size=3)):
        message.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(0, 2**62), max_size=3)))
    for key in draw(st.lists(st.text(max_size=5), max_size=3)):
        message.parameters[key].int64_param = 7
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    return message


def parsed_again(data: bytes) -> Any:
    parts = split(data)
    assert parts is not None
    message = pb.ModelInferRequest.FromString(parts.head)
    assert not message.raw_input_contents and not message.id
    message.id = parts.request_id
    message.raw_input_contents.extend([bytes(content) for content in parts.contents])
    return message


@given(requests())
def test_the_parts_are_the_message(message: Any) -> None:
    assert parsed_again(message.SerializeToString()) == message


@given(requests(), st.integers(1, 20))
def test_fields_in_any_order(message: Any, at: int) -> None:
    """Two messages in a row are one: the fields of the first come again after the contents."""
    other = pb.ModelInferRequest(model_version=str(at))
    other.raw_input_contents.append(b"x" * at)
    data = message.SerializeToString() + other.SerializeToString()
    assert parsed_again(data) == pb.ModelInferRequest.FromString(data)


@given(requests(), st.data())
def test_what_is_cut_off(message: Any, data: st.DataObject) -> None:
    whole = message.SerializeToString()
    agrees_with_protobuf(whole[: data.draw(st.integers(0, len(whole)))])


@given(st.binary(max_size=100))
@example(b"\x3a" + b"\xff" * 12)
@example(b"\x3a\x80")
@example(b"\x3a")
@example(b"\x1a\x01\xff")
@example(b"\x1a\x01\xff\x1a\x01x")
@example(b"\x99\x06\x00\x00\x00\x00\x00\x00\x00\x00\x3a\x01x")
def test_any_bytes(data: bytes) -> None:
    agrees_with_protobuf(data)


def agrees_with_protobuf(data: bytes) -> None:
    if split(data) is None:
        return
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parsed_again(data)
    else:
        assert parsed_again(data) == expected


@given(st.integers(0, 2**31 - 1))
def test_prefix(size: int) -> None:
    number, wire_type, encoded = prefix(6, size)[0] >> 3, prefix(6, size)[0] & 7, prefix(6, size)[1:]
    assert (number, wire_type) == (6, 2)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == size
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
