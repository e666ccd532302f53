"""Records that find no room, that are too long for a ring, or that give blocks back."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest
from stub_end import FOREIGN, OWN, Stub, result
from stublet.parent.news import News
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.shm.message import FINALIZE, INDIRECT, NEWS, WORK, decode_down, pack
from stublet.shm.ring import SLOTS

# ---- a full ring ----


def test_what_finds_no_room_is_written_later_in_order(stub: Stub) -> None:
    total = SLOTS + 20
    for _ in range(total):
        stub.hand(stub.request())
    assert stub.channel.stuck
    stub.channel.finalize()
    stub.channel.flush()
    assert stub.channel.stuck
    found: List[Any] = []
    for _ in range(total):
        record = stub.down.pop()
        if record is not None:
            message = decode_down(record)
            found += [message] if message[0] == FINALIZE else [request[0] for batch in message[2] for request in batch]
        stub.channel.flush()
    assert found == [*range(total), (FINALIZE,)]
    assert not stub.channel.stuck


def test_a_record_that_finds_no_room_in_the_arena_goes_later(plain: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is longer than a slot. The stub is well, and so are its requests, when there is room again."""
    indirect = plain.channel._indirect

    def no_room(_record: bytes) -> bytes:
        raise OutOfSharedMemory("no room")

    monkeypatch.setattr(plain.channel, "_indirect", no_room)
    plain.channel.loans.releases.append((OWN, 0))
    plain.hand(plain.request(extras=("x" * 5000, None, "{}", 0, 0, 0)))
    assert plain.channel.stuck and plain.records() == []
    monkeypatch.setattr(plain.channel, "_indirect", indirect)
    plain.channel.flush()
    assert not plain.channel.stuck
    ((kind, *_),) = plain.records()
    assert kind == INDIRECT and not plain.channel.loans.releases


def test_it_finishes_behind_everything_else(stub: Stub) -> None:
    stub.channel.hand([stub.request()])
    stub.channel.finalize()
    stub.channel.flush()
    stub.channel.flush()
    assert [record[0] for record in stub.records()] == [WORK, FINALIZE] and not stub.channel.stuck


# ---- what is over ----


def test_an_answer_is_told_of_before_what_is_over_is_put_away(stub: Stub) -> None:
    stub.hand(stub.request(100))
    stub.up.push(pack((NEWS, (), [result(0)], ())))
    news = News()
    stub.channel.drain(news)
    assert [request.key for request, _, _ in news.settled] == [0] and stub.in_use() == 1 and list(stub.channel.in_flight) == [0]
    with pytest.raises(ProtocolError, match="request 0 is answered but was not handed over"):
        stub.up.push(pack((NEWS, (), [result(0)], ())))
        stub.channel.drain(News())
    stub.channel.put_away(news)
    assert stub.in_use() == 0 and not stub.channel.in_flight


# ---- what is given back to the stub ----


def test_a_few_blocks_wait_for_the_next_record(plain: Stub) -> None:
    plain.channel.loans.releases.extend((OWN, 64 * number) for number in range(15))
    assert not plain.channel.has_releases
    plain.channel.flush()
    assert plain.records() == []
    plain.hand(plain.request())
    releases, requests, _ = plain.work()
    assert releases == [(OWN, 64 * number) for number in range(15)] and len(requests) == 1


def test_many_blocks_have_a_record_of_their_own(plain: Stub) -> None:
    plain.channel.loans.releases.extend((OWN, 64 * number) for number in range(16))
    assert plain.channel.has_releases
    plain.channel.flush()
    assert plain.records() == [(WORK, tuple((OWN, 64 * number) for number in range(16)), (), ())]
    assert not plain.channel.has_releases


def test_a_decoupled_model_gets_each_block_back_at_once(decoupled: Stub) -> None:
    """It sends without being asked, and would run out of them."""
    assert not decoupled.channel.has_releases
    decoupled.channel.loans.releases.append((OWN, 0))
    assert decoupled.channel.has_releases
    decoupled.channel.flush()
    assert decoupled.records() == [(WORK, ((OWN, 0),), (), ())]
    decoupled.channel.flush()
    assert decoupled.records() == []


# ---- long records ----


def test_a_record_too_long_for_the_ring_lies_in_a_block(stub: Stub) -> None:
    extras = ("x" * 10_000, None, "{}", 0, 0, 0)
    stub.hand(stub.request(extras=extras))
    ((kind, segment, offset, nbytes),) = stub.records()
    assert kind == INDIRECT and segment in stub.announced and stub.in_use() == 1
    message = decode_down(stub.made[0].memory[offset : offset + nbytes])
    assert message[2][0][0] == (0, False, (), (), extras, ())
    stub.say(releases=[(segment, offset)])
    assert stub.in_use() == 0


def in_own(stub: Stub, record: bytes, offset: int = 64) -> None:
    """Says a record by way of a block of the stub's arena."""
    stub.own.memory[offset : offset + len(record)] = record
    assert stub.up.push(pack((INDIRECT, OWN, offset, len(record))))


def test_a_stubs_long_record_is_read_and_its_block_given_back(stub: Stub) -> None:
    stub.hand(stub.request())
    in_own(stub, pack((NEWS, (), (result(0, error=(1, "x" * 10_000)),), ())))
    stub.drain()
    assert len(str(stub.settled[0][1])) == 10_000 and list(stub.channel.loans.releases) == [(OWN, 64)]


@pytest.mark.parametrize(
    "record",
    [
        pack((INDIRECT, OWN, 64, 10)),
        b"\xc1\xc1",
        pack((99,)),
    ],
)
def test_a_long_record_that_is_none_is_refused(stub: Stub, record: bytes) -> None:
    in_own(stub, record)
    with pytest.raises(ProtocolError):
        stub.drain()


def test_a_long_record_of_too_many_elements_is_refused_before_they_take_memory(stub: Stub) -> None:
    in_own(stub, pack((NEWS, [0] * ((1 << 14) + 1), (), ())))
    with pytest.raises(ProtocolError, match="max_array_len"):
        stub.drain()


@pytest.mark.parametrize(
    "place", [(99, 0, 10), (OWN, (256 << 10) - 5, 10), (OWN, -1, 10), (OWN, 0, -1), (OWN, 0, 1 << 50), (FOREIGN, 0, 10)]
)
def test_a_long_record_elsewhere_is_refused(stub: Stub, place: Tuple[int, int, int]) -> None:
    assert stub.up.push(pack((INDIRECT, *place)))
    with pytest.raises(ProtocolError):
        stub.drain()


@pytest.mark.parametrize("record", [b"", b"\xc1", pack((77, 1)), pack((NEWS, ()))])
def test_garbage_is_refused(stub: Stub, record: bytes) -> None:
    assert stub.up.push(record)
    with pytest.raises(ProtocolError):
        stub.drain()
