"""Requests that are executed together: one batch of a record, one execution that is over, one time, one count."""

from __future__ import annotations

from time import perf_counter_ns
from typing import List

from stub_end import Row, Stub, result
from stublet.parent.request import Batch, Request
from stublet.parent.statistics import ModelStatistics
from stublet.shm.message import EMPTY, RETURNED
from stublet.shm.ring import OPEN_REQUESTS

MILLI = 10**6


def together(stub: Stub, count: int) -> List[Request]:
    """Requests that were handed over in one batch."""
    requests = [stub.request(100) for _ in range(count)]
    batch = Batch(count, 2 * count, perf_counter_ns() - 9 * MILLI)
    for request in requests:
        request.batch = batch
        request.submitted_ns = perf_counter_ns() - 10 * MILLI
    assert stub.channel.hand(requests)
    stub.channel.flush()
    return requests


def took(nanoseconds: int, row: Row) -> Row:
    return (*row[:2], nanoseconds, *row[3:])


def test_they_are_one_batch_of_a_record(plain: Stub) -> None:
    together(plain, 3)
    together(plain, 1)
    batches = [batch for record in plain.records() for batch in record[2]]
    assert [[request[0] for request in batch] for batch in batches] == [[0, 1, 2], [3]]


def test_the_execution_is_over_when_all_of_them_are(plain: Stub) -> None:
    together(plain, 3)
    plain.say(result(0), result(2))
    assert plain.returned == 0
    plain.say(result(1))
    assert plain.returned == 1 and not plain.channel.in_flight


def test_of_a_decoupled_model_too(decoupled: Stub) -> None:
    together(decoupled, 2)
    decoupled.say(result(0, RETURNED | EMPTY), result(1, RETURNED | EMPTY))
    assert decoupled.returned == 1 and len(decoupled.channel.in_flight) == 2


def test_all_or_none_are_handed_over(plain: Stub) -> None:
    together(plain, OPEN_REQUESTS - 1)
    more = [plain.request(), plain.request()]
    assert not plain.channel.hand(more)
    assert len(plain.channel.in_flight) == OPEN_REQUESTS - 1
    assert plain.channel.hand(more[:1])


def test_they_have_the_same_times_and_are_one_execution(plain: Stub) -> None:
    requests = together(plain, 3)
    plain.say(*[took(4 * MILLI, result(key)) for key in range(3)])
    assert len({request.computed_ns for request in requests}) == 1
    assert all(request.computed_ns - request.begun_ns >= 4 * MILLI for request in requests)
    assert requests[0].batch is not None and requests[0].begun_ns >= requests[0].batch.handed_ns
    statistics = ModelStatistics(batching=True)
    for request in requests:
        request.inputs = [(0, 2, (2, 1), 0, 0, 2)]
        statistics.settled(request, None, True, 0, perf_counter_ns())
    counted = statistics.as_dict()
    assert (counted["inference_count"], counted["execution_count"]) == (6, 1)
    assert [(one["batch_size"], one["compute_infer"]["count"]) for one in counted["batch_stats"]] == [(6, 1)]
    assert counted["inference_stats"]["success"]["count"] == 3


def test_what_had_not_begun_is_handed_over_again(plain: Stub) -> None:
    requests = together(plain, 2)
    _, unstarted = plain.channel.abandon(RuntimeError("gone"))  # type: ignore[arg-type]
    assert unstarted == requests
