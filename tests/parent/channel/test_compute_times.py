"""When a stub was busy with which request, and what counts as a failure."""

from __future__ import annotations

from time import perf_counter_ns
from typing import List, Optional

import pytest
from stub_end import DONE, Row, Stub, result
from stublet.parent.request import Request
from stublet.parent.statistics import Failure
from stublet.shm.message import EMPTY, FAILURE, FINAL, NEWS, RESCHEDULE, RETURNED, ErrorCode, pack

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
    assert start + 10 * MILLI <= second.computed_ns == plain.channel.times.free_ns <= perf_counter_ns()
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
