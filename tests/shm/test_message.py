"""Messages: any bytes are a message, every part of it as documented, or a ProtocolError."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Callable, Tuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from message_checks import Decoder, check_message, read
from message_strategies import ANY, ODD, places, replaced
from stublet.shm.errors import ProtocolError
from stublet.shm.message import NEWS, decode_down, decode_up, pack, packer, unpack


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


@pytest.mark.parametrize("pack", [pack, packer()])
def test_a_text_that_is_not_unicode_is_told_nevertheless(pack: Callable[[Any], bytes]) -> None:
    """A model's error may quote the name of a file."""
    assert unpack(pack((os.fsdecode(b"caf\xe9"), "é"))) == ("caf\\udce9", "é")


@given(st.binary(max_size=100))
def test_unpack_gives_an_array_or_a_protocol_error(data: bytes) -> None:
    with suppress(ProtocolError):
        assert type(unpack(data)) is tuple
