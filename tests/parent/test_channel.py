"""The server's end of an instance's rings; the test is the stub, with real rings and real segments."""

from __future__ import annotations

import itertools
import random
import select
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from shared_memory import client_file
from stublet.parent import errors
from stublet.parent.channel import Channel, News
from stublet.parent.client_memory import ClientMemory, RegionSlice
from stublet.parent.model_config import TensorSpec
from stublet.parent.request import Loan, Outcome, Output, OutputPlan, Request, Response
from stublet.parent.statistics import Failure
from stublet.shm.arena import Arena, Block
from stublet.shm.dtype import BY_NAME
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.shm.message import (
    EMPTY,
    FAILURE,
    FINAL,
    FINALIZE,
    IN_REGION,
    INDIRECT,
    NEWS,
    RESCHEDULE,
    RETURNED,
    WORK,
    ErrorCode,
    decode_down,
    pack,
)
from stublet.shm.ring import OPEN_REQUESTS, SLOTS, STARTED, Consumer, Producer, Words
from stublet.shm.segment import Segment

UINT8 = BY_NAME["UINT8"]
DONE = FINAL | RETURNED

OWN, FOREIGN = 50, 60
"""Ids of a segment of the stub's arena, and of one of another stub."""

Row = Tuple[Any, ...]
Key = Tuple[int, int]


class Stub:
    """The far end of a channel, and what the channel takes for its model."""

    def __init__(self, decoupled: bool = False) -> None:
        self.made: List[Segment] = []
        self.name = "model"
        self.decoupled = decoupled
        self.max_concurrent = 1
        self.outputs = [TensorSpec(name, UINT8, (-1,), False) for name in ("out", "other")]
        self.memo: Dict[Any, Any] = {}
        self.arena = Arena(self.grow, 1 << 20)
        self.announced: List[int] = []
        self.regions: List[int] = []
        """Regions of clients that the stub was told of."""
        self.channel = Channel(
            self,  # type: ignore[arg-type]
            lambda segment: self.announced.append(segment.id),
            lambda region: self.regions.append(region.id),
        )
        self.own = self.channel.outputs[OWN] = Segment.create(OWN, 256 << 10)
        self.foreign = Segment.create(FOREIGN, 256 << 10)
        self.came_back: List[Key] = []
        """Blocks of the other stub that were given back."""
        words = Words(self.channel.segment)
        words.check()
        self.words = words
        self.down = Consumer(words, "down", self.channel.down_bell)
        self.up = Producer(words, "up", self.channel.up_bell)
        self.settled: List[Tuple[int, Optional[Outcome], bool]] = []
        self.returned = 0

    def remember(self, key: Any, value: Any) -> None:
        self.memo[key] = value

    def grow(self, nbytes: int) -> Segment:
        self.made.append(Segment.create(len(self.made) + 1, nbytes))
        return self.made[-1]

    def close(self) -> None:
        self.channel.close()
        for segment in (self.own, self.foreign, *self.made):
            segment.close()

    # as the server

    def request(self, *sizes: int, blocks: Optional[Sequence[Any]] = None, extras: Row = (), borrowed: bool = False) -> Request:
        """A request with an input in each of its blocks, all of a block."""
        taken = [self.arena.allocate(size) for size in sizes] if blocks is None else list(blocks)
        sizes = tuple(block.size for block in taken) if blocks is not None else sizes
        inputs = [(index, UINT8.code, (size,), index, 0, size) for index, size in enumerate(sizes)]
        return Request(list(zip(taken, sizes)), inputs, extras, lambda *_: None, borrowed)

    def hand(self, *requests: Request) -> None:
        for request in requests:
            assert self.channel.hand(request)
        self.channel.flush()

    def loan(self, offset: int, size: int = 100) -> Loan:
        """A block of another stub."""
        return Loan(self.foreign, offset, size, (self.came_back.append, (FOREIGN, offset)))

    def response(self, *places: Tuple[Segment, int], size: int = 100) -> Response:
        """What another model answered: an output in each of these places."""
        outputs = [(0, UINT8.code, (size,), index, 0, size) for index in range(len(places))]
        plan = OutputPlan([TensorSpec("answer", UINT8, (-1,), False)], outputs, len(places))
        leases = [(self.came_back.append, (segment.id, offset)) for segment, offset in places]
        return Response(plan, list(places), leases, '{"a": 1}')

    def drain(self) -> News:
        """What came up; its outcomes are noted."""
        news = News()
        try:
            self.channel.drain(news)
        finally:
            self.settled += [(request.key, outcome, final) for request, outcome, final in news.settled]
            self.returned += news.returned
        return news

    def in_use(self) -> int:
        """Blocks of the request arena that somebody holds."""
        self.arena.collect()
        return sum(block.holders > 0 for block in self.arena._blocks.values())

    def holders(self, block: Block) -> int:
        """How often a block of the request arena is held."""
        self.arena.collect()
        return block.holders

    # as the stub

    def records(self) -> List[Row]:
        """Every record that has come down; those that lie in a block are read there, and the block is kept."""
        found = []
        while True:
            record = self.down.pop()
            if record is None:
                return found
            message = decode_down(record)
            found.append(message)

    def work(self) -> Tuple[List[Key], List[Row], List[Row]]:
        """The releases, requests and replies of these records."""
        releases: List[Key] = []
        requests: List[Row] = []
        replies: List[Row] = []
        for kind, *parts in self.records():
            assert kind == WORK
            releases += parts[0]
            requests += [request for batch in parts[1] for request in batch]
            replies += parts[2]
        return releases, requests, replies

    def begin(self, key: int) -> None:
        """The execution of a request begins."""
        self.words.view[STARTED // 8] = key + 1

    def say(self, *results: Row, releases: Sequence[Key] = (), calls: Sequence[Row] = ()) -> News:
        assert self.up.push(pack((NEWS, releases, results, calls)))
        return self.drain()


@pytest.fixture(params=[False, True], ids=["", "decoupled"])
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    stub = Stub(request.param)
    yield stub
    stub.close()


@pytest.fixture
def plain() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def decoupled() -> Iterator[Stub]:
    stub = Stub(decoupled=True)
    yield stub
    stub.close()


def result(key: int, flags: int = DONE, *blocks: Key, size: int = 8, kept: Sequence[int] = (), error: Row = ()) -> Row:
    """One with an output in each of these blocks."""
    outputs = [(0, UINT8.code, (size,), index, 0, size) for index in range(len(blocks))]
    return key, flags, 5, kept, blocks, outputs, error, ""


def call(number: int, *blocks: Key, size: int = 8) -> Row:
    inputs = [("x", UINT8.code, (size,), index, 0, size) for index in range(len(blocks))]
    return number, 0, "callee", -1, blocks, inputs, (), ("", "{}", 0, 0, 0)


def rung(bell: int) -> bool:
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    return bool(poll.poll(0))


# ---- there and back ----


def test_a_request_goes_down_and_its_response_comes_up(stub: Stub) -> None:
    extras = ("id", None, "{}", 7, 1, 5)
    request = stub.request(100, 200, extras=extras)
    stub.hand(request)
    releases, (came,), replies = stub.work()
    blocks = tuple((block.segment.id, block.offset, size) for block, size in request.blocks)
    assert came == (0, False, blocks, tuple(request.inputs), extras, ()) and not releases and not replies
    stub.own.memory[64:72] = b"response"
    stub.say(result(0, DONE, (OWN, 64)))
    ((key, outcome, final),) = stub.settled
    assert (key, final, stub.returned, stub.channel.in_flight) == (0, True, 1, {})
    assert isinstance(outcome, Response)
    ((output,), (place,)) = outcome.plan.outputs, outcome.places
    assert output == Output("out", UINT8, (8,), 0, 0, 8) and place == (stub.own, 64)
    assert outcome.copy(output) == b"response"
    assert not stub.channel.releases
    outcome.release()
    assert list(stub.channel.releases) == [(OWN, 64)]
    assert stub.in_use() == 0


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_comes_up_as_what_it_is(stub: Stub, code: ErrorCode) -> None:
    stub.hand(stub.request())
    stub.say(result(0, error=(int(code), "wrong")))
    ((_, outcome, final),) = stub.settled
    assert type(outcome) is errors.BY_CODE[code] and str(outcome) == "wrong" and final


def test_requests_of_one_turn_share_a_record(stub: Stub) -> None:
    stub.hand(*[stub.request() for _ in range(5)])
    ((kind, _, batches, _),) = stub.records()
    assert kind == WORK and [[request[0] for request in batch] for batch in batches] == [[0], [1], [2], [3], [4]]


def test_a_sleeper_is_woken(stub: Stub) -> None:
    stub.hand(stub.request())
    assert not rung(stub.channel.down_bell)
    stub.records()
    assert stub.down.lie_down()
    stub.hand(stub.request())
    assert rung(stub.channel.down_bell)
    assert stub.channel.asleep()
    stub.up.push(pack((NEWS, (), (), ())))
    stub.up.ring()
    assert rung(stub.channel.up_bell) and stub.channel.ready()
    stub.channel.silence()
    assert not rung(stub.channel.up_bell)
    assert not stub.channel.asleep(), "a record is there"


# ---- what is lent ----


@pytest.mark.parametrize("kept", [(), (0,), (1,), (0, 1), (5,)])
def test_blocks_come_back_with_the_answer_or_later(stub: Stub, kept: Tuple[int, ...]) -> None:
    request = stub.request(100, 200)
    keys = [block.key for block, _ in request.blocks]
    stub.hand(request)
    assert stub.in_use() == 2
    stub.say(result(0, kept=kept))
    held = [keys[index] for index in kept if index < 2]
    assert stub.in_use() == len(held)
    for key in held:
        stub.say(releases=[key])
    assert stub.in_use() == 0


def test_what_was_not_kept_cannot_be_given_back(stub: Stub) -> None:
    request = stub.request(100)
    stub.hand(request)
    ((block, _),) = request.blocks
    for key in (block.key, (99, 0), (OWN, 0)):
        with pytest.raises(ProtocolError, match="is given back but was not kept"):
            stub.say(releases=[key])
    stub.say(result(0, kept=(0,)), releases=[block.key])
    assert stub.in_use() == 0, "what a record says comes before what it gives back"
    with pytest.raises(ProtocolError, match="is given back but was not kept"):
        stub.say(releases=[block.key])


def test_an_input_may_be_an_output(stub: Stub) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    block.write(0, b"response", 8)
    stub.hand(request)
    stub.say(result(0, DONE, block.key, block.key))
    outcome = stub.settled[0][1]
    assert isinstance(outcome, Response) and stub.in_use() == 1
    assert [outcome.copy(output) for output in outcome.plan.outputs] == [b"response"] * 2
    outcome.release()
    assert stub.in_use() == 0


def test_views_hold_their_block(stub: Stub) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    block.write(0, b"response", 8)
    stub.hand(request)
    stub.say(result(0, DONE, block.key, (OWN, 64)))
    outcome = stub.settled.pop()[1]
    assert isinstance(outcome, Response)
    first, second = outcome.views()
    del outcome
    assert first.tobytes() == b"response" and stub.in_use() == 1 and not stub.channel.releases
    kept = first[2:4]
    del first
    assert stub.in_use() == 1
    del kept, second
    assert stub.in_use() == 0 and list(stub.channel.releases) == [(OWN, 64)]


@pytest.mark.parametrize("key", [(99, 0), (FOREIGN, 0), (-1, -1)])
def test_an_output_elsewhere_is_refused(stub: Stub, key: Key) -> None:
    """Whatever was held for the outputs before it is let go."""
    request = stub.request(100)
    ((block, _),) = request.blocks
    stub.hand(request)
    with pytest.raises(ProtocolError, match="was not lent"):
        stub.say(result(0, DONE, block.key, (OWN, 0), key))
    assert stub.holders(block) == 1 and list(stub.channel.releases) == [(OWN, 0)]


@pytest.mark.parametrize("start, size", [(0, 129), (0, 1 << 40)])
def test_an_output_beyond_what_was_lent_is_refused(stub: Stub, start: int, size: int) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    assert block.size == 128
    stub.hand(request)
    with pytest.raises(ProtocolError, match="lies outside its block"):
        stub.say(result(0, DONE, block.key, size=size))


@pytest.mark.parametrize("offset, size", [(0, (256 << 10) + 1), (256 << 10, 8), (-8, 8)])
def test_an_output_beyond_the_stubs_segment_is_refused(stub: Stub, offset: int, size: int) -> None:
    stub.hand(stub.request())
    with pytest.raises(ProtocolError, match="lie outside segment"):
        stub.say(result(0, DONE, (OWN, offset), size=size))


def test_an_output_that_the_model_does_not_have_is_refused(stub: Stub) -> None:
    stub.hand(stub.request())
    with pytest.raises(ProtocolError, match="output 2 of 2"):
        stub.say((0, DONE, 5, (), ((OWN, 0),), ((2, UINT8.code, (8,), 0, 0, 8),), (), ""))


def test_one_block_lent_to_several_requests(stub: Stub) -> None:
    """Two calls of another model with the same tensor."""
    loans = [stub.loan(64) for _ in range(3)]
    stub.hand(*[stub.request(blocks=[loan], borrowed=True) for loan in loans])
    assert stub.announced == [FOREIGN], "it is told of a segment once"
    stub.say(result(0))
    assert len(stub.came_back) == 1
    stub.say(result(1, DONE, (FOREIGN, 64), kept=(0,)))
    assert len(stub.came_back) == 1
    stub.say(result(2))
    assert len(stub.came_back) <= 2
    stub.say(releases=[(FOREIGN, 64)])
    outcome = stub.settled[1][1]
    assert isinstance(outcome, Response) and len(stub.came_back) == 2, "the response still lies in it"
    outcome.release()
    assert stub.came_back == [(FOREIGN, 64)] * 3
    with pytest.raises(ProtocolError, match="was not lent"):
        stub.hand(stub.request())
        stub.say(result(3, DONE, (FOREIGN, 64)))


@pytest.mark.parametrize("sizes", [(100, 1000), (1000, 100)])
def test_one_block_lent_in_several_sizes(stub: Stub, sizes: Tuple[int, int]) -> None:
    """Two inputs of a call may be parts of one array: what is lent with the one may be smaller than what is lent with the other."""
    stub.hand(stub.request(blocks=[stub.loan(0, size) for size in sizes], borrowed=True))
    stub.say(result(0, DONE, (FOREIGN, 0), size=1000))
    outcome = stub.settled[-1][1]
    assert isinstance(outcome, Response)
    outcome.release()
    assert stub.came_back == [(FOREIGN, 0)] * 2


@pytest.mark.parametrize("sizes", [(100, 1000), (1000, 100)])
@pytest.mark.parametrize("kept", [0, 1])
def test_what_is_kept_of_them_can_still_be_named(stub: Stub, sizes: Tuple[int, int], kept: int) -> None:
    stub.hand(stub.request(blocks=[stub.loan(0, size) for size in sizes], borrowed=True), stub.request())
    stub.say(result(0, kept=(kept,)))
    if sizes[kept] == 100:
        with pytest.raises(ProtocolError, match="lies outside its block"):
            stub.say(result(1, DONE, (FOREIGN, 0), size=1000))
    stub.say(result(1, DONE, (FOREIGN, 0), size=sizes[kept]), releases=[(FOREIGN, 0)])
    outcome = stub.settled[-1][1]
    assert isinstance(outcome, Response) and len(stub.came_back) == 1
    outcome.release()
    assert stub.came_back == [(FOREIGN, 0)] * 2


def test_of_what_is_kept_the_largest_is_given_back_last(stub: Stub) -> None:
    """It is not said which of them: what is still viewed must not be taken for something outside."""
    stub.hand(stub.request(blocks=[stub.loan(0, size) for size in (100, 1000, 500)], borrowed=True), stub.request())
    stub.say(result(0, kept=(0, 1, 2)))
    stub.say(releases=[(FOREIGN, 0)] * 2)
    stub.say(result(1, DONE, (FOREIGN, 0), size=1000), releases=[(FOREIGN, 0)])


def test_a_block_lent_twice_is_taken_back_from_whom_it_was_lent_to(stub: Stub) -> None:
    """A request that is handed on after the stub's end still holds its own."""
    stub.channel.reply(1, stub.response((stub.foreign, 0)), True)
    request = stub.request(blocks=[stub.loan(0)], borrowed=True)
    stub.hand(request)
    stub.say(releases=[(FOREIGN, 0)])
    assert len(stub.came_back) == 1
    _, unstarted = stub.channel.abandon(errors.Unavailable("it died"))
    assert unstarted == [request] and len(stub.came_back) == 1
    request.release()
    assert stub.came_back == [(FOREIGN, 0)] * 2


def test_a_stub_is_told_of_each_foreign_segment_before_it_is_named(stub: Stub) -> None:
    stub.hand(stub.request(100), stub.request(100), stub.request(blocks=[stub.loan(0)]))
    assert stub.announced == [stub.made[0].id, FOREIGN]
    stub.channel.reply(1, stub.response((stub.foreign, 64)), True)
    assert stub.announced == [stub.made[0].id, FOREIGN]


def test_a_stub_is_not_told_of_its_own_segments(stub: Stub) -> None:
    """A model that it called may have given it back what it sent."""
    stub.channel.reply(1, stub.response((stub.own, 64)), True)
    stub.channel.flush()
    assert stub.announced == []
    stub.say(releases=[(OWN, 64)])
    assert stub.came_back == [(OWN, 64)]


# ---- the order of what is said ----


@pytest.mark.parametrize("flags", [FINAL, FINAL | EMPTY, 0, RETURNED])
def test_nothing_is_said_after_the_last_response(stub: Stub, flags: int) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    stub.hand(request)
    stub.say(result(0, FINAL, (OWN, 0)))
    holders = block.holders
    with pytest.raises(ProtocolError, match="request 0 is answered after its last response"):
        stub.say(result(0, flags, *([] if flags & EMPTY else [block.key])))
    assert len(stub.settled) == 1 and stub.holders(block) == holders, "nothing is held for what is refused"


def test_an_execution_is_over_once(stub: Stub) -> None:
    stub.hand(stub.request(100))
    stub.say(result(0, RETURNED | EMPTY))
    with pytest.raises(ProtocolError, match="the execution of request 0 is over twice"):
        stub.say(result(0, RETURNED | EMPTY))


@pytest.mark.parametrize("key", [0, 1, -1, 2**63])
def test_who_was_not_handed_over_is_not_answered(stub: Stub, key: int) -> None:
    if key == 1:
        stub.hand(stub.request())
        stub.say(result(0))
    with pytest.raises(ProtocolError, match=f"request {0 if key == 1 else key} is answered but was not handed over"):
        stub.say(result(0 if key == 1 else key))


def test_a_plain_request_is_not_finished_without_a_response(plain: Stub) -> None:
    plain.hand(plain.request())
    with pytest.raises(ProtocolError, match="request 0 is finished without a response"):
        plain.say(result(0, FINAL | EMPTY | RETURNED))


def test_a_plain_request_is_settled_by_its_response(plain: Stub) -> None:
    """A sender may close later, and the execution may be over before or after."""
    for flags in (
        (0, FINAL | EMPTY, RETURNED | EMPTY),
        (RETURNED, FINAL | EMPTY),
        (RETURNED | EMPTY, 0, FINAL | EMPTY),
        (FINAL, RETURNED | EMPTY),
    ):
        key = plain.channel._next_key
        plain.settled.clear()
        plain.hand(plain.request(100))
        for index, flag in enumerate(flags):
            assert key in plain.channel.in_flight
            plain.say(result(key, flag))
            responded = any(not said & EMPTY for said in flags[: index + 1])
            assert [(found, final) for found, _, final in plain.settled] == ([(key, True)] if responded else [])
        assert plain.channel.in_flight == {} and plain.in_use() == 0


def test_what_a_model_says_after_its_response_is_not_told(plain: Stub) -> None:
    """Such as that it dropped the sender."""
    plain.hand(plain.request())
    plain.say(result(0, RETURNED), result(0, FINAL, error=(1, "dropped")))
    assert len(plain.settled) == 1 and plain.channel.in_flight == {}


def test_a_response_that_nobody_waits_for_is_given_back(plain: Stub) -> None:
    request = plain.request(100)
    plain.hand(request)
    request.answered = True  # it was cancelled
    plain.say(result(0, DONE, (OWN, 0), request.blocks[0][0].key))
    assert plain.settled == [] and list(plain.channel.releases) == [(OWN, 0)] and plain.in_use() == 0


def test_a_decoupled_request_has_any_number_of_responses(decoupled: Stub) -> None:
    decoupled.hand(decoupled.request(100), decoupled.request(100))
    decoupled.say(result(0, 0, (OWN, 0)), result(1, 0, error=(1, "wrong")))
    decoupled.say(result(0, RETURNED | EMPTY), result(1, RETURNED | EMPTY))
    assert decoupled.in_use() == 0 and decoupled.returned == 2 and len(decoupled.channel.in_flight) == 2
    decoupled.say(result(0, 0), result(1, FINAL), result(0, FINAL | EMPTY))
    assert [(key, outcome is None, final) for key, outcome, final in decoupled.settled] == [
        (0, False, False),
        (1, False, False),
        (0, False, False),
        (1, False, True),
        (0, True, True),
    ]
    assert decoupled.channel.in_flight == {}


@pytest.mark.parametrize("flags", [FINAL | EMPTY | RESCHEDULE | RETURNED])
def test_a_scheduler_that_cannot_reschedule_says_so(stub: Stub, flags: int) -> None:
    stub.hand(stub.request())
    stub.say(result(0, flags))
    ((_, outcome, final),) = stub.settled
    assert final and isinstance(outcome, errors.InternalError)
    assert str(outcome).startswith("Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE")


def test_what_came_before_garbage_counts(stub: Stub) -> None:
    stub.hand(stub.request(), stub.request())
    with pytest.raises(ProtocolError):
        stub.say(result(0), result(99), result(1))
    assert [key for key, _, _ in stub.settled] == [0]


# ---- keys and cancellation ----


def test_a_request_that_is_cancelled_has_its_byte_set(stub: Stub) -> None:
    first, second = stub.request(), stub.request()
    stub.hand(first, second)
    assert not stub.channel.executing()
    stub.begin(0)
    assert stub.channel.executing() and stub.channel.has_started(first) and not stub.channel.has_started(second)
    assert stub.channel.cancel(first) is True, "its execution has begun"
    assert stub.channel.cancel(second) is False
    assert list(stub.words.cancelled[:3]) == [1, 1, 0]
    stub.say(result(0))
    assert list(stub.words.cancelled[:3]) == [0, 1, 0] and not stub.channel.executing()
    stub.say(result(1, error=(7, "cancelled")))
    assert not any(stub.words.cancelled)


def test_an_execution_that_is_over_does_not_execute(decoupled: Stub) -> None:
    decoupled.hand(decoupled.request())
    decoupled.begin(0)
    decoupled.say(result(0, RETURNED | EMPTY))
    assert not decoupled.channel.executing() and decoupled.channel.in_flight


def test_no_two_open_requests_share_a_byte(decoupled: Stub) -> None:
    """One stays open while more come and go than there are bytes."""
    old = [decoupled.request() for _ in range(3)]
    decoupled.hand(*old)
    decoupled.say(result(1))
    keys = []
    for _ in range(OPEN_REQUESTS + 10):
        request = decoupled.request()
        assert decoupled.channel.hand(request)
        decoupled.channel._batches.clear()
        assert request.key & (OPEN_REQUESTS - 1) not in (0, 2)
        keys.append(request.key)
        if len(keys) % 1000 == 0:
            decoupled.channel.cancel(request)
            assert list(decoupled.words.cancelled[:3]) == [0, 0, 0]
        decoupled.say(result(request.key))
    assert keys == sorted(set(keys)) and keys[-1] > OPEN_REQUESTS, "which has begun is known by the order of the keys"
    assert not any(decoupled.words.cancelled)
    decoupled.say(result(0), result(2))
    assert decoupled.channel.in_flight == {}


def test_a_stub_has_only_so_many_open_requests(decoupled: Stub) -> None:
    requests = [decoupled.request() for _ in range(OPEN_REQUESTS)]
    for request in requests:
        assert decoupled.channel.hand(request)
    refused = decoupled.request()
    assert not decoupled.channel.hand(refused)
    assert len({request.key & (OPEN_REQUESTS - 1) for request in requests}) == OPEN_REQUESTS
    decoupled.say(result(requests[5000].key))
    assert decoupled.channel.hand(refused)
    assert refused.key & (OPEN_REQUESTS - 1) == requests[5000].key
    assert refused.key > requests[-1].key
    assert not decoupled.channel.hand(decoupled.request())


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
    plain.channel.releases.append((OWN, 0))
    plain.hand(plain.request(extras=("x" * 5000, None, "{}", 0, 0, 0)))
    assert plain.channel.stuck and plain.records() == []
    monkeypatch.setattr(plain.channel, "_indirect", indirect)
    plain.channel.flush()
    assert not plain.channel.stuck
    ((kind, *_),) = plain.records()
    assert kind == INDIRECT and not plain.channel.releases


def test_it_finishes_behind_everything_else(stub: Stub) -> None:
    stub.channel.hand(stub.request())
    stub.channel.finalize()
    stub.channel.flush()
    stub.channel.flush()
    assert [record[0] for record in stub.records()] == [WORK, FINALIZE] and not stub.channel.stuck


# ---- what is given back to the stub ----


def test_a_few_blocks_wait_for_the_next_record(plain: Stub) -> None:
    plain.channel.releases.extend((OWN, 64 * number) for number in range(15))
    assert not plain.channel.has_releases
    plain.channel.flush()
    assert plain.records() == []
    plain.hand(plain.request())
    releases, requests, _ = plain.work()
    assert releases == [(OWN, 64 * number) for number in range(15)] and len(requests) == 1


def test_many_blocks_have_a_record_of_their_own(plain: Stub) -> None:
    plain.channel.releases.extend((OWN, 64 * number) for number in range(16))
    assert plain.channel.has_releases
    plain.channel.flush()
    assert plain.records() == [(WORK, tuple((OWN, 64 * number) for number in range(16)), (), ())]
    assert not plain.channel.has_releases


def test_a_decoupled_model_gets_each_block_back_at_once(decoupled: Stub) -> None:
    """It sends without being asked, and would run out of them."""
    assert not decoupled.channel.has_releases
    decoupled.channel.releases.append((OWN, 0))
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
    assert len(str(stub.settled[0][1])) == 10_000 and list(stub.channel.releases) == [(OWN, 64)]


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


# ---- calls and replies ----


def test_a_call_comes_up_with_its_tensors_where_they_lie(stub: Stub) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    stub.hand(request)
    news = stub.say(calls=[call(7, (OWN, 64), block.key, (OWN, 64)), (3,), call(8)])
    assert news.cancelled_calls == [3] and [made.number for made in news.calls] == [7, 8]
    made = news.calls[0]
    assert (made.model, made.version, made.flags) == ("callee", -1, 0)
    assert [(loan.key, loan.size, nbytes) for loan, nbytes in made.blocks] == [((OWN, 64), 8, 8), (block.key, 8, 8), ((OWN, 64), 8, 8)]
    assert block.holders == 2
    stub.say(result(0))
    assert stub.in_use() == 1, "the call still needs it"
    for loan, _ in made.blocks:
        loan.release()
    assert stub.in_use() == 0 and list(stub.channel.releases) == [(OWN, 64)] * 2


def test_what_another_stub_lent_may_be_passed_on(stub: Stub) -> None:
    stub.hand(stub.request(blocks=[stub.loan(64)], borrowed=True))
    news = stub.say(calls=[call(1, (FOREIGN, 64))])
    ((loan, _),) = news.calls[0].blocks
    stub.say(result(0))
    assert stub.came_back == []
    loan.release()
    assert stub.came_back == [(FOREIGN, 64)]


@pytest.mark.parametrize("key, size", [((99, 0), 8), ((FOREIGN, 0), 8), ((OWN, 256 << 10), 8), ((OWN, 0), 1 << 40)])
def test_a_call_with_a_tensor_elsewhere_is_refused(stub: Stub, key: Key, size: int) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    stub.hand(request)
    inputs = [("x", UINT8.code, (8,), 0, 0, 8), ("y", UINT8.code, (size,), 1, 0, size)]
    with pytest.raises(ProtocolError):
        stub.say(calls=[(1, 0, "callee", -1, (block.key, key), inputs, (), ("", "{}", 0, 0, 0))])
    assert stub.holders(block) == 1


def test_a_reply_goes_down_with_its_tensors_where_they_lie(stub: Stub) -> None:
    stub.channel.reply(7, stub.response((stub.foreign, 64), (stub.foreign, 512)), False)
    stub.channel.reply(7, None, True)
    stub.channel.reply(8, errors.NotFound("no such model"), True)
    stub.channel.flush()
    _, _, replies = stub.work()
    blocks = ((FOREIGN, 64, 100), (FOREIGN, 512, 100))
    outputs = (("answer", UINT8.code, (100,), 0, 0, 100), ("answer", UINT8.code, (100,), 1, 0, 100))
    assert replies == [
        (7, False, blocks, outputs, (), '{"a": 1}'),
        (7, True, (), (), (), ""),
        (8, True, (), (), (int(ErrorCode.NOT_FOUND), "no such model"), ""),
    ]
    assert stub.came_back == []
    stub.say(releases=[(FOREIGN, 512)])
    assert stub.came_back == [(FOREIGN, 512)]
    stub.say(releases=[(FOREIGN, 64)])
    assert stub.came_back == [(FOREIGN, 512), (FOREIGN, 64)]
    with pytest.raises(ProtocolError, match="was not kept"):
        stub.say(releases=[(FOREIGN, 64)])


def test_what_came_as_a_reply_may_be_an_output_or_go_into_another_call(stub: Stub) -> None:
    stub.hand(stub.request())
    stub.channel.reply(1, stub.response((stub.foreign, 64)), True)
    news = stub.say(result(0, DONE, (FOREIGN, 64)), calls=[call(2, (FOREIGN, 64))], releases=[(FOREIGN, 64)])
    outcome = stub.settled[0][1]
    assert isinstance(outcome, Response) and stub.came_back == []
    outcome.release()
    news.calls[0].blocks[0][0].release()
    assert stub.came_back == [(FOREIGN, 64)]


def test_outputs_that_can_no_longer_be_shared_are_an_error(stub: Stub) -> None:
    response = stub.response((stub.foreign, 64))
    stub.foreign.close()
    stub.channel.reply(1, response, True)
    stub.channel.flush()
    _, _, ((_, final, blocks, _, (code, text), _),) = stub.work()
    assert final and not blocks and code == ErrorCode.UNAVAILABLE and "unloaded" in text
    assert stub.came_back == [(FOREIGN, 64)]


def test_segments_are_forgotten_when_nothing_in_them_is_lent(stub: Stub) -> None:
    stub.hand(stub.request(100), stub.request(blocks=[stub.loan(0)], borrowed=True))
    arena = stub.made[0].id
    assert stub.channel.forgettable([arena, FOREIGN, 99]) == set()
    stub.say(result(1))
    assert stub.channel.forgettable([arena, FOREIGN, 99]) == {FOREIGN}
    assert stub.channel.forgettable([FOREIGN]) == set()
    stub.hand(stub.request(blocks=[stub.loan(0)], borrowed=True))
    assert stub.announced == [arena, FOREIGN, FOREIGN], "it is told again"


# ---- shared memory of clients ----


@pytest.fixture
def registry() -> Iterator[ClientMemory]:
    """With a region "a", number 70, and a region "b", number 71."""
    with client_file(4096) as file:
        registry = ClientMemory(True, itertools.count(70).__next__, lambda ids: None)
        for name in ("a", "b"):
            registry.register_system(name, file.key, 0, 4096)
        yield registry
        registry.close()


def in_regions(
    stub: Stub, registry: ClientMemory, reads: Sequence[RegionSlice] = (), writes: Sequence[Tuple[int, RegionSlice]] = ()
) -> Request:
    request = stub.request(100)
    request.regions = registry.use(reads, writes)
    return request


def held(registry: ClientMemory) -> List[str]:
    """The regions that requests use."""
    registry.unregister_system()
    return [row["name"] for row in registry.system_status()]


A, B = RegionSlice("a", 0, 8), RegionSlice("b", 16, 8)


def test_a_stub_is_told_of_a_region_before_the_first_request_with_it(stub: Stub, registry: ClientMemory) -> None:
    stub.hand(in_regions(stub, registry, [A, A], [(1, B)]))
    assert stub.regions == [70, 71]
    stub.hand(stub.request(100), in_regions(stub, registry, [B]))
    assert stub.regions == [70, 71]
    _, requests, _ = stub.work()
    assert [request[5] for request in requests] == [(((70, 0, 8), (70, 0, 8)), ((1, 71, 16, 8),)), (), (((71, 16, 8),), ())]
    assert stub.channel.forgettable([70, 99]) == {70}
    stub.hand(in_regions(stub, registry, [A]))
    assert stub.regions == [70, 71, 70], "it is told again"


def test_a_region_is_in_use_until_the_request_is_over(stub: Stub, registry: ClientMemory) -> None:
    stub.hand(in_regions(stub, registry, [A]), in_regions(stub, registry, [], [(0, B)]))
    assert held(registry) == ["a", "b"]
    stub.say(result(0, FINAL))
    assert held(registry) == ["a", "b"], "execute is not over"
    stub.say(result(0, RETURNED | EMPTY))
    assert held(registry) == ["b"]
    stub.say(result(1, error=(1, "failed")))
    assert held(registry) == []


def test_an_output_in_a_region_is_described_and_has_no_bytes(stub: Stub, registry: ClientMemory) -> None:
    stub.hand(in_regions(stub, registry, [], [(1, B)]))
    stub.own.memory[64:72] = b"response"
    outputs = [(1, UINT8.code, (2, 4), IN_REGION, 0, 8), (0, UINT8.code, (8,), 0, 0, 8)]
    stub.say((0, DONE, 5, (), [(OWN, 64)], outputs, (), ""))
    ((_, outcome, _),) = stub.settled
    assert isinstance(outcome, Response)
    there, here = outcome.plan.outputs
    assert (there.name, there.shape, there.block, there.nbytes) == ("other", (2, 4), IN_REGION, 8)
    assert (outcome.plan.nbytes, outcome.plan.extents) == (8, [8])
    assert (outcome.copy(there), outcome.copy(here)) == (b"", b"response")
    assert [view.tobytes() for view in outcome.views()] == [b"", b"response"]


@pytest.mark.parametrize("writes", [None, [], [(0, B)]], ids=["no regions", "inputs only", "another output"])
def test_an_output_in_a_region_that_the_client_did_not_name_is_refused(
    stub: Stub, registry: ClientMemory, writes: Optional[List[Tuple[int, RegionSlice]]]
) -> None:
    stub.hand(stub.request(100) if writes is None else in_regions(stub, registry, [A], writes))
    with pytest.raises(ProtocolError, match="request 0 has no region for an output that is said to be in one"):
        stub.say((0, DONE, 5, (), [(OWN, 64)], [(1, UINT8.code, (8,), IN_REGION, 0, 8)], (), ""))
    assert list(stub.channel.releases) == [(OWN, 64)]


def test_at_the_end_of_a_stub_only_what_is_handed_on_uses_regions(stub: Stub, registry: ClientMemory) -> None:
    executing, next_one = in_regions(stub, registry, [A]), in_regions(stub, registry, [B])
    stub.hand(executing, next_one)
    stub.begin(executing.key)
    assert held(registry) == ["a", "b"]
    _, unstarted = stub.channel.abandon(errors.Unavailable("it died"))
    assert unstarted == [next_one] and held(registry) == ["b"]
    next_one.release()
    assert held(registry) == []


# ---- the end of a stub ----


def test_at_its_end_what_it_executed_fails_and_the_rest_is_handed_on(stub: Stub) -> None:
    answered, executing, next_one, cancelled = (stub.request(100) for _ in range(4))
    stub.hand(answered, executing, next_one, cancelled)
    stub.say(result(0, RETURNED, kept=(0,)))
    stub.begin(executing.key)
    cancelled.answered = True
    stub.settled.clear()
    error = errors.Unavailable("it died")
    settled, unstarted = stub.channel.abandon(error)
    if stub.decoupled:
        assert settled == [(answered, error, True), (executing, error, True)], "a stream ends, too"
    else:
        assert settled == [(executing, error, True)]
    assert unstarted == [next_one] and all(request.answered for request, _, _ in settled)
    assert stub.in_use() == 1, "only what is handed on is still held"
    other = Stub()
    other.hand(*unstarted)
    other.say(result(0))
    assert stub.in_use() == 0
    other.close()
    assert stub.channel.abandon(error) == ([], [])


def test_a_stub_that_hides_what_it_has_begun_gets_nothing_done_twice(plain: Stub) -> None:
    """The blocks of a request that is over are somebody else's by now: it must not be handed on."""
    request = plain.request(100)
    plain.hand(request)
    plain.say(result(0, RETURNED | EMPTY))
    assert plain.words.started == 0 and plain.in_use() == 0
    error = errors.Unavailable("it died")
    assert plain.channel.abandon(error) == ([(request, error, True)], [])


def test_at_its_end_everything_lent_comes_back(stub: Stub) -> None:
    stub.hand(stub.request(blocks=[stub.loan(0), stub.loan(0, 1000)]), stub.request(blocks=[stub.loan(0)]))
    stub.begin(1)
    stub.channel.reply(1, stub.response((stub.foreign, 64), (stub.foreign, 0)), True)
    stub.hand(stub.request(extras=("x" * 10_000, None, "{}", 0, 0, 0)))
    news = stub.say(calls=[call(5, (FOREIGN, 64))])
    stub.channel.abandon(errors.Unavailable("it died"))
    assert sorted(stub.came_back) == [(FOREIGN, 0)] * 4, "what it gave to others lies there still"
    news.calls[0].blocks[0][0].release()
    assert sorted(stub.came_back) == [(FOREIGN, 0)] * 4 + [(FOREIGN, 64)]
    assert stub.in_use() == 0


def test_a_response_outlives_its_stub(stub: Stub) -> None:
    request = stub.request(100)
    ((block, _),) = request.blocks
    block.write(0, b"response", 8)
    stub.own.memory[:8] = b"response"
    stub.hand(request)
    stub.begin(0)
    stub.say(result(0, RETURNED if stub.decoupled else DONE, block.key, (OWN, 0)))
    stub.channel.abandon(errors.Unavailable("it died"))
    outcome = stub.settled[0][1]
    assert isinstance(outcome, Response)
    assert [outcome.copy(output) for output in outcome.plan.outputs] == [b"response"] * 2
    outcome.release()
    assert stub.in_use() == 0


# ---- everything at once ----


@pytest.mark.parametrize("seed", range(30))
def test_every_block_comes_back_exactly_once(seed: int) -> None:
    """A stub that behaves, with requests, calls, replies and responses at random."""
    chance = random.Random(seed)
    stub = Stub(decoupled=chance.random() < 0.5)
    open_: Dict[int, Request] = {}
    kept: List[Key] = []
    responses: List[Response] = []
    loans: List[Loan] = []
    lent = own = given_back = 0

    def viewable() -> List[Key]:
        """Blocks that the stub may name."""
        return [(OWN, 64 * chance.randrange(100)), *kept, *(block.key for request in open_.values() for block, _ in request.blocks)]

    for _ in range(300):
        what = chance.randrange(6)
        if what == 0:
            blocks: List[Any] = [stub.loan(128 * chance.randrange(3)) for _ in range(chance.randrange(3))]
            lent += len(blocks)
            if chance.random() < 0.5:
                blocks.append(stub.arena.allocate(100))
            request = stub.request(blocks=blocks)
            stub.hand(request)
            open_[request.key] = request
        elif what == 1 and open_:
            key = chance.choice(list(open_))
            named = chance.sample(viewable(), chance.randrange(3)) if chance.random() < 0.7 else []
            named = list(dict.fromkeys(named))
            request = open_.pop(key)
            held = [index for index in range(len(request.blocks)) if chance.random() < 0.3]
            own += sum(segment == OWN for segment, _ in named)
            stub.say(result(key, DONE, *named, kept=held))
            kept += [request.blocks[index][0].key for index in held]
            outcome = stub.settled.pop()[1]
            assert isinstance(outcome, Response)
            responses.append(outcome)
        elif what == 2 and kept:
            stub.say(releases=[kept.pop(chance.randrange(len(kept)))])
        elif what == 3:
            stub.channel.reply(1, stub.response((stub.foreign, 128 * chance.randrange(3))), True)
            lent += 1
            kept.append((FOREIGN, stub.channel._replies[-1][2][0][1]))
            stub.channel.flush()
        elif what == 4:
            named = chance.sample(viewable(), 1)
            own += named[0][0] == OWN
            loans += [loan for made in stub.say(calls=[call(1, *named)]).calls for loan, _ in made.blocks]
        elif responses and chance.random() < 0.5:
            responses.pop(chance.randrange(len(responses))).release()
        elif loans:
            loans.pop(chance.randrange(len(loans))).release()
        given_back += sum(len(record[1]) for record in stub.records())
    if chance.random() < 0.5:
        for request in stub.channel.abandon(errors.Unavailable("it died"))[1]:
            request.release()
    else:
        stub.say(releases=kept)
        for key in open_:
            stub.say(result(key))
    for response in responses:
        response.release()
    for loan in loans:
        loan.release()
    given_back += len(stub.channel.releases)
    assert len(stub.came_back) == lent
    assert given_back == own
    assert stub.in_use() == 0 and not stub.channel._lent and not stub.channel._lent_again and not stub.channel._kept
    stub.close()


def test_the_numbers_of_a_loan_add_up() -> None:
    back: List[str] = []
    loan = Loan(SimpleNamespace(id=5), 64, 100, (back.append, "back"))  # type: ignore[arg-type]
    assert loan.key == (5, 64)
    give_back, item = loan.lease()
    loan.retain()
    for _ in range(2):
        loan.release()
    assert back == []
    give_back(item)
    assert back == ["back"]


def test_an_array_over_a_response_is_its_bytes(plain: Stub) -> None:
    plain.hand(plain.request())
    plain.own.memory[64:72] = bytes(range(8))
    plain.say(result(0, DONE, (OWN, 64)))
    outcome = plain.settled.pop()[1]
    assert isinstance(outcome, Response)
    (view,) = outcome.views()
    assert view.dtype == np.uint8 and view.tolist() == list(range(8))


# ---- when it was ----

HAND_OVER = 20_000
MILLI = 10**6


def timed(stub: Stub, *submitted: int) -> List[Request]:
    """Requests that were submitted then and handed over."""
    requests = [stub.request(100) for _ in submitted]
    for request, moment in zip(requests, submitted):
        request.submitted_ns = moment
    stub.hand(*requests)
    return requests


def took(nanoseconds: int, row: Row) -> Row:
    return (*row[:2], nanoseconds, *row[3:])


def test_of_replies_that_come_together_each_has_its_own_time(plain: Stub) -> None:
    start = perf_counter_ns() - 10 * MILLI
    first, second = timed(plain, start, start)
    assert plain.up.push(pack((NEWS, (), (took(4 * MILLI, result(0)),), ())))
    plain.say(took(3 * MILLI, result(1)))
    assert (first.begun_ns, first.computed_ns, first.execute_ns) == (start, start + 4 * MILLI + HAND_OVER, 4 * MILLI)
    assert second.begun_ns == first.computed_ns, "it waited for the first"
    assert start + 10 * MILLI <= second.computed_ns == plain.channel.free_ns <= perf_counter_ns()
    (third,) = timed(plain, start + 9 * MILLI)
    plain.say(took(MILLI // 2, result(2)))
    assert third.begun_ns == second.computed_ns or third.begun_ns == third.computed_ns - MILLI // 2


def test_executions_that_overlap_do_not_wait_for_each_other(plain: Stub) -> None:
    plain.max_concurrent = 4
    start = perf_counter_ns() - 10 * MILLI
    requests = timed(plain, start, start)
    plain.say(took(9 * MILLI, result(0)), took(2 * MILLI, result(1)))
    for request, nanoseconds in zip(requests, (9 * MILLI, 2 * MILLI)):
        assert request.computed_ns - request.begun_ns == nanoseconds + HAND_OVER
        assert request.execute_ns == 0, "not told apart from the hand-over"


def test_a_response_before_the_end_of_execute_ends_the_computing(decoupled: Stub) -> None:
    start = perf_counter_ns() - 10 * MILLI
    (request,) = timed(decoupled, start)
    decoupled.say(took(0, result(0, 0)))
    assert (request.begun_ns, request.computed_ns) == (start, 0)
    decoupled.say(took(0, result(0, FINAL | EMPTY)))
    computed = request.computed_ns
    assert start + 10 * MILLI <= computed <= perf_counter_ns()
    decoupled.say(took(MILLI, result(0, RETURNED | EMPTY)))
    assert (request.begun_ns, request.computed_ns) == (start, computed)


@pytest.mark.parametrize("nanoseconds", [-(2**63), -1, 0, 1, 2**62])
def test_whatever_the_stub_says_of_its_time_the_order_holds(stub: Stub, nanoseconds: int) -> None:
    start = perf_counter_ns()
    (request,) = timed(stub, start)
    stub.say(took(nanoseconds, result(0)))
    if nanoseconds > 0:
        assert start <= request.begun_ns <= request.computed_ns <= perf_counter_ns()
    else:
        assert (request.begun_ns, request.computed_ns) == (0, 0), "it was not executed"


@pytest.mark.parametrize(
    "row, failure",
    [
        (result(0, DONE | FAILURE, error=(ErrorCode.INTERNAL, "x")), Failure.BACKEND),
        (result(0, DONE | FAILURE, error=(ErrorCode.CANCELLED, "x")), Failure.CANCELED),
        (took(0, result(0, DONE | FAILURE, error=(ErrorCode.INVALID_ARG, "x"))), Failure.OTHER),
        (took(0, result(0, FINAL | FAILURE, error=(ErrorCode.INTERNAL, "x"))), Failure.BACKEND),
        (result(0, DONE, error=(ErrorCode.INTERNAL, "x")), None),
        (result(0, DONE | EMPTY | RESCHEDULE), Failure.BACKEND),
        (result(0), None),
    ],
)
def test_what_counts_as_a_failure(plain: Stub, row: Row, failure: Optional[Failure]) -> None:
    (request,) = timed(plain, perf_counter_ns())
    plain.say(row)
    assert request.failure is failure
