"""The rings, and the records in them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Callable

from channel import DIRECTIONS, open_channel
from message_checks import Decoder, check_message
from stub_end import FOREIGN, OWN, Stub
from stublet.parent.errors import InternalError
from stublet.parent.news import News
from stublet.parent.request import drop
from stublet.shm.errors import ProtocolError
from stublet.shm.message import INDIRECT, decode_down, decode_up, pack
from stublet.shm.ring import ASLEEP, CONSUMED, FIRST_SLOT, RECORD_BYTES, SLOT_BYTES, SLOTS

from ..target import Target, pure

TOKENS = [
    b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x96", b"\x97", b"\x98", b"\xc0", b"\xc2", b"\xc3", b"\xff", b"\xa1x", b"\xa2{}", b"\xc4\x01x",
    b"\xdc\x00\x02", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xca" + bytes(4), b"\xcb" + bytes(8), b"\xcf" + b"\xff" * 8,
    b"\xd3" + b"\x80" + bytes(7), b"\xd4\x05x", b"\xd6\xff" + bytes(4), bytes([OWN]), bytes([FOREIGN]), b"\x81\x00\x00", b"\x96\x00\x02\x91\x08\x00\x00\x08",
]  # fmt: skip


# ---- records ----


def _records(decoder: Decoder) -> Callable[[], Any]:
    """Any bytes are a message as documented, whoever reads it first and second, or a ProtocolError."""

    def check(data: bytes) -> None:
        for _ in range(2):
            try:
                message = decoder(data)
            except ProtocolError:
                continue
            check_message(decoder, message)

    return pure(check)


# ---- what a stub says ----


def _channel(decoupled: bool) -> Callable[[], Any]:
    """A stub with two requests, one of them begun, and a block of another stub says anything, directly or, if it is long, by way of its arena.
    What stands for a key is that of the first request. When the stub is gone, nothing is held."""

    def check(data: bytes) -> None:
        stub = Stub(decoupled)
        try:
            stub.hand(stub.request(8), stub.request(8, 64))
            stub.work()
            stub.begin(0)
            stub.channel.loans.lend(stub.loan(128), kept=True)
            for record in data.replace(KEY, b"\0").split(_BETWEEN)[:SLOTS]:
                _say(stub, record)
            _, unstarted = stub.channel.abandon(InternalError("the stub is gone"))
            for request in unstarted:
                request.release()
            assert stub.in_use() == 0 and stub.came_back == [(FOREIGN, 128)]
        finally:
            stub.close()

    return pure(check)


def _say(stub: Stub, record: bytes) -> None:
    if len(record) > RECORD_BYTES:
        stub.own.memory[4096 : 4096 + len(record)] = record
        record = pack((INDIRECT, OWN, 4096, len(record)))
    stub.up.push(record)
    news = News()
    with suppress(ProtocolError):
        stub.channel.drain(news)
    for call in news.calls:
        for loan, _ in call.blocks:
            loan.release()
    for _, outcome, _ in news.settled:
        drop(outcome)


_BETWEEN = b"\n\n\n"
KEY = b"\xcd\xab\xcd"


# ---- the memory of a channel ----


def ring(data: bytes) -> None:
    """The other side writes whatever it likes where only it may write, and where it may not."""
    with open_channel() as channel:
        for number in range(70):
            for direction in DIRECTIONS:
                channel.producers[direction].push(b"record %d" % number)
                if number % 3:
                    channel.consumers[direction].pop()
        # Nine bytes are a word, and where it goes: one of the words of the header, or the first two of a slot.
        for start in range(0, len(data) - 8, 9):
            place, value = data[start], int.from_bytes(data[start + 1 : start + 9], "little")
            channel.words.view[_WORDS[place % len(_WORDS)]] = value
            for direction in DIRECTIONS:
                _use(channel.producers[direction], channel.consumers[direction])


_WORDS = [
    *(table[direction] // 8 for table in (CONSUMED, ASLEEP) for direction in DIRECTIONS),
    *(
        (FIRST_SLOT[direction] + slot % SLOTS * SLOT_BYTES) // 8 + word
        for direction in DIRECTIONS
        for slot in range(40, 72)
        for word in (0, 1)
    ),
]


def _use(producer: Any, consumer: Any) -> None:
    for step in (lambda: producer.push(b"another"), producer.ring, consumer.lie_down, consumer.stay_awake, consumer.silence):
        try:
            step()
        except ProtocolError:
            continue
    try:
        for _ in range(SLOTS + 1):
            record = consumer.pop()
            if record is None:
                return
            assert len(record) <= RECORD_BYTES
    except ProtocolError:
        return
    raise AssertionError("more records than slots")


TARGETS = [
    Target("record_down", _records(decode_down), TOKENS, mutations=4000),
    Target("record_up", _records(decode_up), TOKENS, mutations=4000),
    Target("channel", _channel(False), [*TOKENS, _BETWEEN, KEY], mutations=300),
    Target("channel_decoupled", _channel(True), [*TOKENS, _BETWEEN, KEY], mutations=300),
    Target("ring", pure(ring), mutations=300),
]
