"""Device memory as the server knows it: who holds which block of it, and what may not be there."""

from __future__ import annotations

from typing import Any

import pytest
from stub_end import DONE, UINT8, Stub, call, result
from stublet.parent import errors
from stublet.parent.request import Loan, Response
from stublet.shm.cuda.arena import GRANULE
from stublet.shm.cuda.segment import DeviceSegment, spelled
from stublet.shm.dtype import BYTES
from stublet.shm.errors import ProtocolError
from stublet.shm.message import BORROWED, DEVICE_OUTPUTS, INDIRECT, ErrorCode, pack

HERE, THERE = 70, 80
"""Ids of a segment that the stub exports, and of one of another."""

UUID, HANDLE = bytes(range(16)), bytes(64)


@pytest.fixture
def exported(stub: Stub) -> DeviceSegment:
    segment = DeviceSegment(HERE, GRANULE, UUID, HANDLE)
    stub.channel.loans.outputs[HERE] = segment
    stub.channel.loans.has_devices = True
    return segment


def other(stub: Stub, offset: int = 0, size: int = 100) -> Loan:
    """A block of another stub's device memory."""
    segment = DeviceSegment(THERE, GRANULE, UUID, HANDLE)
    return Loan(segment, offset, size, (stub.came_back.append, (THERE, offset)))


@pytest.mark.parametrize(
    "more",
    [
        {"size": 0}, {"size": -GRANULE}, {"size": GRANULE + 1}, {"size": "1"}, {"size": float(GRANULE)}, {"uuid": b""}, {"uuid": "x" * 16},
        {"handle": b"x"}, {"handle": None}, {"handle": bytes(65)},
    ],
)  # fmt: skip
def test_a_segment_that_cannot_be(more: Any) -> None:
    with pytest.raises(ProtocolError):
        DeviceSegment(1, **{"size": GRANULE, "uuid": UUID, "handle": HANDLE, **more})


def test_nothing_of_it_can_be_read_here(exported: DeviceSegment) -> None:
    assert exported.fd is None and exported.reserved == 0 and exported.shareable
    with pytest.raises(ProtocolError, match="segment 70 is memory of a GPU: it has no memory in this process"):
        assert exported.memory
    assert spelled(UUID) == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_a_stub_is_told_of_it_once_and_gives_each_block_back(stub: Stub) -> None:
    stub.hand(stub.request(blocks=[other(stub), other(stub, 512)], borrowed=True))
    assert stub.announced == [THERE]
    _, ((_, flags, blocks, *_),), _ = stub.work()
    assert flags == BORROWED and blocks == ((THERE, 0, 100), (THERE, 512, 100))
    stub.say(result(0, kept=(1,)))
    assert stub.came_back == [(THERE, 0)]
    assert stub.channel.loans.forgettable([THERE]) == set(), "not while something of it is lent"
    stub.say(releases=[(THERE, 512)])
    assert stub.came_back == [(THERE, 0), (THERE, 512)]
    assert stub.channel.loans.forgettable([THERE]) == {THERE}


def test_a_stub_that_dies_gives_everything_back(stub: Stub) -> None:
    stub.hand(stub.request(blocks=[other(stub)], borrowed=True))
    stub.channel.reply(3, stub.response((other(stub).segment, 512)), True)
    stub.begin(0)
    stub.channel.abandon(errors.Unavailable("gone"))
    assert sorted(stub.came_back) == [(THERE, 0), (THERE, 512)]


def test_an_answer_in_device_memory_goes_back_to_its_exporter(stub: Stub, exported: DeviceSegment) -> None:
    request = stub.request()
    request.device_outputs = True
    stub.hand(request)
    _, ((_, flags, *_),), _ = stub.work()
    assert flags == DEVICE_OUTPUTS
    stub.say(result(0, DONE, (HERE, 0), (HERE, 512)))
    ((_, outcome, _),) = stub.settled
    assert isinstance(outcome, Response) and [segment for segment, _ in outcome.places] == [exported, exported]
    outcome.release()
    assert list(stub.channel.loans.releases) == [(HERE, 0), (HERE, 512)]


def test_an_answer_in_device_memory_that_nobody_takes_is_a_violation(stub: Stub, exported: DeviceSegment) -> None:
    stub.hand(stub.request())
    with pytest.raises(ProtocolError, match="output 'out' of request 0 is in device memory, which it may not be"):
        stub.say(result(0, DONE, (HERE, 0)))
    assert list(stub.channel.loans.releases) == [(HERE, 0)]


def test_strings_are_never_there(stub: Stub, exported: DeviceSegment) -> None:
    request = stub.request()
    request.device_outputs = True
    stub.hand(request)
    strings = ((0, BYTES.code, (1,), 0, 0, 8),)
    with pytest.raises(ProtocolError, match="device memory"):
        stub.say((0, DONE, 5, (), ((HERE, 0),), strings, (), ""))
    made = (4, 0, "callee", -1, ((HERE, 0),), (("x", BYTES.code, (1,), 0, 0, 8),), (), ("", "{}", 0, 0, 0))
    with pytest.raises(ProtocolError, match="input 'x' of call 4 are strings in device memory"):
        stub.say(calls=[made])
    assert list(stub.channel.loans.releases) == [(HERE, 0)] * 2


@pytest.mark.parametrize(
    "key, nbytes", [((HERE, GRANULE), 1), ((HERE, 0), GRANULE + 1), ((HERE, -512), 8), ((HERE + 1, 0), 8), ((THERE, 0), 8)]
)
def test_a_tensor_outside_of_it_is_a_violation(stub: Stub, exported: DeviceSegment, key: Any, nbytes: int) -> None:
    inputs = (("x", UINT8.code, (nbytes,), 0, 0, nbytes),)
    with pytest.raises(ProtocolError):
        stub.say(calls=[(1, 0, "callee", -1, (key,), inputs, (), ("", "{}", 0, 0, 0))])


def test_a_record_in_it_is_a_violation(stub: Stub, exported: DeviceSegment) -> None:
    assert stub.up.push(pack((INDIRECT, HERE, 0, 8)))
    with pytest.raises(ProtocolError, match="it has no memory in this process"):
        stub.drain()


def test_a_call_says_that_it_has_something_there(stub: Stub, exported: DeviceSegment) -> None:
    news = stub.say(calls=[call(1, (HERE, 0)), call(2)])
    assert [made.is_on_device() for made in news.calls] == [True, False]
    stub.channel.ask_again(1)
    stub.channel.flush()
    assert stub.work()[2] == [(1,)]


def test_after_its_exporter_is_gone_it_is_not_passed_on(stub: Stub) -> None:
    segment = DeviceSegment(THERE, GRANULE, UUID, HANDLE)
    response = stub.response((segment, 0))
    segment.close()
    stub.channel.reply(1, response, True)
    stub.channel.flush()
    _, _, ((_, final, blocks, _, (code, text), _),) = stub.work()
    assert final and not blocks and code == ErrorCode.UNAVAILABLE and "unloaded" in text
    assert stub.came_back == [(THERE, 0)]
