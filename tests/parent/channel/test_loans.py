"""Who holds which block, and that each comes back exactly once."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from stub_end import DONE, FOREIGN, OWN, UINT8, Key, Stub, call, result
from stublet.parent import errors
from stublet.parent.request import Loan, Request, Response
from stublet.shm.errors import ProtocolError
from stublet.shm.message import RETURNED

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
    assert first.tobytes() == b"response" and stub.in_use() == 1 and not stub.channel.loans.releases
    kept = first[2:4]
    del first
    assert stub.in_use() == 1
    del kept, second
    assert stub.in_use() == 0 and list(stub.channel.loans.releases) == [(OWN, 64)]


@pytest.mark.parametrize("key", [(99, 0), (FOREIGN, 0), (-1, -1)])
def test_an_output_elsewhere_is_refused(stub: Stub, key: Key) -> None:
    """Whatever was held for the outputs before it is let go."""
    request = stub.request(100)
    ((block, _),) = request.blocks
    stub.hand(request)
    with pytest.raises(ProtocolError, match="was not lent"):
        stub.say(result(0, DONE, block.key, (OWN, 0), key))
    assert stub.holders(block) == 1 and list(stub.channel.loans.releases) == [(OWN, 0)]


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


# ---- calls and replies ----


def test_segments_are_forgotten_when_nothing_in_them_is_lent(stub: Stub) -> None:
    stub.hand(stub.request(100), stub.request(blocks=[stub.loan(0)], borrowed=True))
    arena = stub.made[0].id
    assert stub.channel.loans.forgettable([arena, FOREIGN, 99]) == set()
    stub.say(result(1))
    assert stub.channel.loans.forgettable([arena, FOREIGN, 99]) == {FOREIGN}
    assert stub.channel.loans.forgettable([FOREIGN]) == set()
    stub.hand(stub.request(blocks=[stub.loan(0)], borrowed=True))
    assert stub.announced == [arena, FOREIGN, FOREIGN], "it is told again"


# ---- the end of a stub ----


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
    given_back += len(stub.channel.loans.releases)
    assert len(stub.came_back) == lent
    assert given_back == own
    assert stub.in_use() == 0 and not stub.channel.loans._lent and not stub.channel.loans._lent_again and not stub.channel.loans._kept
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
