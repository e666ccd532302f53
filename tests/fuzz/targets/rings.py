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
from stublet.shm.cuda.arena import GRANULE
from stublet.shm.cuda.driver import HANDLE_BYTES, UUID_BYTES
from stublet.shm.cuda.segment import DeviceSegment
from stublet.shm.errors import ProtocolError
from stublet.shm.message import INDIRECT, decode_down, decode_up, pack
from stublet.shm.ring import ASLEEP, CONSUMED, FIRST_SLOT, RECORD_BYTES, SLOT_BYTES, SLOTS

from ..target import Target, pure

DEVICE = 70
"""Id of a segment of device memory that the stub exports."""

TOKENS = [
    b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x96", b"\x97", b"\x98", b"\xc0", b"\xc2", b"\xc3", b"\xff", b"\xa1x", b"\xa2{}", b"\xc4\x01x",
    b"\xdc\x00\x02", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xca" + bytes(4), b"\xcb" + bytes(8), b"\xcf" + b"\xff" * 8,
    b"\xd3" + b"\x80" + bytes(7), b"\xd4\x05x", b"\xd6\xff" + bytes(4), bytes([OWN]), bytes([FOREIGN]), bytes([DEVICE]), b"\x81\x00\x00", b"\x96\x00\x02\x91\x08\x00\x00\x08",
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


class _Life:
    """A stub with two requests, one of them begun, and a block of another stub, which says anything; between its records the server acts."""

    def __init__(self, decoupled: bool) -> None:
        self.stub = Stub(decoupled)
        self._requests = [self.stub.request(8), self.stub.request(8, 64)]
        self._requests[0].device_outputs = True
        self.stub.hand(*self._requests)
        self.stub.work()
        self.stub.begin(0)
        self.lent = 128
        """Bytes of the other stub's memory."""
        self.stub.channel.loans.lend(self.stub.loan(self.lent), kept=True)
        self._ends = {"again": False, "trusted": True}

    def say(self, record: bytes) -> None:
        """A record, directly or, if it is long, by way of the stub's arena. What stands for a key is that of the first request."""
        stub = self.stub
        if len(record) > RECORD_BYTES:
            stub.own.memory[4096 : 4096 + len(record)] = record
            record = pack((INDIRECT, OWN, 4096, len(record)))
        stub.up.push(record)
        news = News()
        with suppress(ProtocolError):
            stub.channel.drain(news)
            stub.channel.put_away(news)
        for call in news.calls:
            for loan, _ in call.blocks:
                loan.release()
        for _, outcome, _ in news.settled:
            drop(outcome)

    def act(self, what: bytes) -> None:
        """The server does one of several things, by the byte."""
        stub, channel = self.stub, self.stub.channel
        with suppress(ProtocolError):
            if what == b"c":
                channel.cancel(self._requests[0])
            elif what == b"h":
                channel.hold(self._requests[0], True)
            elif what == b"n":
                channel.hand([stub.request(8)])
            elif what == b"a":
                self.lent += 128
                channel.reply(1, stub.response((stub.foreign, self.lent)), True)
            elif what == b"A":
                channel.ask_again(1)
            elif what == b"d":
                channel.loans.outputs[DEVICE] = DeviceSegment(DEVICE, GRANULE, bytes(UUID_BYTES), bytes(HANDLE_BYTES))
                channel.loans.has_devices = True
            elif what == b"s":
                channel.loans.outputs.pop(OWN, None)
            elif what == b"f":
                channel.loans.forgettable({OWN, FOREIGN, *(segment.id for segment in stub.made)})
            elif what == b"r":
                self._ends["again"] = True
            elif what == b"v":
                self._ends["trusted"] = False
            channel.flush()
            stub.records()

    def end(self) -> None:
        """When the stub is gone, nothing is held."""
        stub = self.stub
        _, unstarted = stub.channel.abandon(InternalError("the stub is gone"), **self._ends)
        for request in unstarted:
            request.release()
        assert not stub.channel.in_flight
        assert stub.in_use() == 0 and sorted(stub.came_back) == [(FOREIGN, offset) for offset in range(128, self.lent + 1, 128)]


def _channel(decoupled: bool) -> Callable[[], Any]:
    """What a stub says: records, and between them what the server does, a byte each."""

    def check(data: bytes) -> None:
        life = _Life(decoupled)
        try:
            for record in data.replace(KEY, b"\0").split(_BETWEEN)[:SLOTS]:
                if len(record) == 1:
                    life.act(record)
                else:
                    life.say(record)
            life.end()
        finally:
            life.stub.close()

    return pure(check)


_BETWEEN = b"\n\n\n"
_ACTS = [b"\n\n\n%c\n\n\n" % act for act in b"chnaAdsfrv"]
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
    Target("channel", _channel(False), [*TOKENS, *_ACTS, _BETWEEN, KEY], mutations=300),
    Target("channel_decoupled", _channel(True), [*TOKENS, *_ACTS, _BETWEEN, KEY], mutations=300),
    Target("ring", pure(ring), mutations=300),
]
