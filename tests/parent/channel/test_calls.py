"""Calls of a model to others, and the replies."""

from __future__ import annotations

import pytest
from stub_end import DONE, FOREIGN, OWN, UINT8, Key, Stub, call, result
from stublet.parent import errors
from stublet.parent.request import Response
from stublet.shm.errors import ProtocolError
from stublet.shm.message import ErrorCode


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
    assert stub.in_use() == 0 and list(stub.channel.loans.releases) == [(OWN, 64)] * 2


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
