"""What goes down to a stub and what may come up, in which order, until its end."""

from __future__ import annotations

import select

import pytest
from stub_end import DONE, OWN, UINT8, Stub, result
from stublet.parent import errors
from stublet.parent.request import Output, Response
from stublet.shm.errors import ProtocolError
from stublet.shm.message import EMPTY, FINAL, NEWS, RESCHEDULE, RETURNED, WORK, ErrorCode, pack
from stublet.shm.ring import OPEN_REQUESTS


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
    assert not stub.channel.loans.releases
    outcome.release()
    assert list(stub.channel.loans.releases) == [(OWN, 64)]
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
    assert plain.settled == [] and list(plain.channel.loans.releases) == [(OWN, 0)] and plain.in_use() == 0


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
        assert decoupled.channel.hand([request])
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
        assert decoupled.channel.hand([request])
    refused = decoupled.request()
    assert not decoupled.channel.hand([refused])
    assert len({request.key & (OPEN_REQUESTS - 1) for request in requests}) == OPEN_REQUESTS
    decoupled.say(result(requests[5000].key))
    assert decoupled.channel.hand([refused])
    assert refused.key & (OPEN_REQUESTS - 1) == requests[5000].key
    assert refused.key > requests[-1].key
    assert not decoupled.channel.hand([decoupled.request()])


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
