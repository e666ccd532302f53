"""What is counted of each request, told as times; no process, no clock."""

from __future__ import annotations

from typing import Any, Dict, Optional

import pytest
from stublet.parent.errors import Cancelled, InternalError, Unavailable
from stublet.parent.metrics.latency import Histogram, Latencies
from stublet.parent.request import Request, Response
from stublet.parent.statistics import MOST_RESPONSES, Failure, ModelStatistics, failure_of

MILLI = 10**6
RESPONSE: Any = object.__new__(Response)

NOTHING = {"count": 0, "ns": 0}
RESPONSE_PARTS = ["compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"]


def request(submitted: int = 1000, begun: int = 0, computed: int = 0, execute: int = 0, size: int = 1, copied: int = 0) -> Request:
    """A request with a batch of ``size`` that was begun and computed then, if it was."""
    made = Request([], ((0, 11, (size, 16), 0, 0, 64),), (), lambda *_: None)
    made.submitted_ns, made.begun_ns, made.computed_ns, made.execute_ns, made.input_ns = submitted, begun, computed, execute, copied
    return made


def failed(why: Failure, **times: int) -> Request:
    made = request(**times)
    made.failure = why
    return made


def of(statistics: ModelStatistics, part: str) -> Dict[str, int]:
    found: Dict[str, int] = statistics.as_dict()["inference_stats"][part]
    return found


def test_a_model_that_was_asked_nothing() -> None:
    assert ModelStatistics().as_dict() == {
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": {
            "success": NOTHING,
            "fail": NOTHING,
            "queue": NOTHING,
            "compute_input": NOTHING,
            "compute_infer": NOTHING,
            "compute_output": NOTHING,
            "cache_hit": NOTHING,
            "cache_miss": NOTHING,
        },
        "response_stats": {},
        "batch_stats": [],
    }


def test_the_parts_of_a_request_make_up_the_whole() -> None:
    statistics = ModelStatistics(batching=True)
    statistics.settled(request(begun=1100, computed=1500, execute=300, size=4, copied=50), RESPONSE, True, 0, 1520)
    statistics.settled(request(begun=1000, computed=1200, execute=150, size=1), RESPONSE, True, 0, 1300)
    found = statistics.as_dict()
    assert found["inference_stats"] == {
        "success": {"count": 2, "ns": 570 + 300},
        "fail": NOTHING,
        "queue": {"count": 2, "ns": 100},
        "compute_input": {"count": 2, "ns": 50},
        "compute_infer": {"count": 2, "ns": 400 + 200},
        "compute_output": {"count": 2, "ns": 20 + 100},
        "cache_hit": NOTHING,
        "cache_miss": NOTHING,
    }
    assert (found["inference_count"], found["execution_count"], found["response_stats"]) == (5, 2, {})
    assert found["batch_stats"] == [
        {"batch_size": 1, "compute_input": {"count": 1, "ns": 0}, "compute_infer": {"count": 1, "ns": 200}, "compute_output": {"count": 1, "ns": 100}},
        {"batch_size": 4, "compute_input": {"count": 1, "ns": 50}, "compute_infer": {"count": 1, "ns": 400}, "compute_output": {"count": 1, "ns": 20}},
    ]  # fmt: skip
    assert (statistics.round_trips, statistics.round_trip_ns) == (2, 100 + 50)


def test_without_batching_a_request_is_one_inference() -> None:
    statistics = ModelStatistics(batching=False)
    statistics.settled(request(begun=1000, computed=1001, size=7), RESPONSE, True, 0, 1002)
    found = statistics.as_dict()
    assert (found["inference_count"], [row["batch_size"] for row in found["batch_stats"]]) == (1, [1])


@pytest.mark.parametrize("why", Failure)
@pytest.mark.parametrize("executed", [True, False])
def test_a_failure_counts_with_its_reason_and_its_execution(why: Failure, executed: bool) -> None:
    statistics = ModelStatistics()
    times = {"begun": 1100, "computed": 1500} if executed else {}
    statistics.settled(failed(why, **times), InternalError("x"), True, 0, 1600)
    found = statistics.as_dict()
    assert of(statistics, "fail") == {"count": 1, "ns": 600}
    assert {reason: statistics.failures[reason] for reason in Failure} == {reason: int(reason is why) for reason in Failure}
    assert (found["execution_count"], found["inference_count"], len(found["batch_stats"])) == (int(executed), 0, int(executed))
    assert (found["last_inference"] > 0) == executed
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert of(statistics, part) == NOTHING


def test_an_error_that_is_a_response_is_a_success() -> None:
    statistics = ModelStatistics()
    statistics.settled(request(begun=1000, computed=1001), InternalError("the model's answer"), True, 0, 1002)
    assert of(statistics, "success")["count"] == 1
    assert of(statistics, "fail")["count"] == 0


@pytest.mark.parametrize(
    "error, executed, why",
    [
        (Cancelled("x"), True, Failure.CANCELED),
        (Cancelled("x"), False, Failure.CANCELED),
        (InternalError("x"), True, Failure.BACKEND),
        (Unavailable("x"), True, Failure.BACKEND),
        (InternalError("x"), False, Failure.OTHER),
        (None, True, Failure.BACKEND),
    ],
)
def test_why_a_request_failed(error: Optional[Exception], executed: bool, why: Failure) -> None:
    assert failure_of(error, executed) is why


def test_the_responses_of_a_decoupled_model() -> None:
    statistics = ModelStatistics(decoupled=True)
    one = request(begun=1100, computed=1900)
    statistics.settled(one, RESPONSE, False, 1300, 1310)
    statistics.settled(one, InternalError("in part"), False, 1500, 1520)
    statistics.settled(one, None, True, 1900, 1905)
    cancelled = request(begun=2000, computed=2100)
    statistics.settled(cancelled, Cancelled("x"), True, 2100, 2150)
    found = statistics.as_dict()
    assert (found["inference_stats"]["success"]["count"], found["execution_count"]) == (2, 2)
    nothing = dict.fromkeys(RESPONSE_PARTS, NOTHING)
    assert found["response_stats"] == {
        "0": {
            **nothing,
            "compute_infer": {"count": 1, "ns": 200},
            "compute_output": {"count": 1, "ns": 10},
            "success": {"count": 1, "ns": 210},
            "cancel": {"count": 1, "ns": 150},
        },
        "1": {
            **nothing,
            "compute_infer": {"count": 1, "ns": 190},
            "compute_output": {"count": 1, "ns": 20},
            "fail": {"count": 1, "ns": 210},
        },
        "2": {**nothing, "empty_response": {"count": 1, "ns": 385}},
    }
    assert all(list(row) == RESPONSE_PARTS for row in found["response_stats"].values())


def test_an_endless_stream_does_not_fill_the_memory() -> None:
    statistics = ModelStatistics(decoupled=True)
    one = request(begun=1000, computed=1001)
    for index in range(MOST_RESPONSES + 10):
        statistics.settled(one, RESPONSE, False, 1001 + index, 1001 + index)
    statistics.settled(one, None, True, 9000, 9000)
    assert len(statistics.as_dict()["response_stats"]) == MOST_RESPONSES
    assert of(statistics, "success")["count"] == 1


def test_the_first_response_is_observed_once() -> None:
    histogram = Histogram((1.0, 10.0))
    statistics = ModelStatistics(decoupled=True, first_response=histogram)
    one = request(submitted=0, begun=1, computed=2)
    for final in (False, True):
        statistics.settled(one, RESPONSE, final, 5 * MILLI, 5 * MILLI)
    statistics.settled(failed(Failure.REJECTED, submitted=0), Unavailable("x"), True, 5 * MILLI, 5 * MILLI)
    statistics.settled(request(submitted=0, begun=1, computed=2), None, True, 0, MILLI)
    statistics.count()
    assert (histogram.buckets(), histogram.sum) == ([0, 1, 1], 5.0)


def test_latencies_are_those_of_requests_that_succeeded() -> None:
    latencies = Latencies((0.5,))
    statistics = ModelStatistics(latencies=latencies)
    statistics.settled(request(submitted=0, begun=2 * MILLI, computed=5 * MILLI, copied=MILLI), RESPONSE, True, 0, 9 * MILLI)
    statistics.settled(failed(Failure.BACKEND, submitted=0, begun=1, computed=2), InternalError("x"), True, 0, 9 * MILLI)
    statistics.count()
    sums = {name: latencies.read(index, 9 * MILLI)[:2] for index, name in enumerate(Latencies.PARTS)}
    assert sums == {
        "request": (1, 10_000),
        "queue": (1, 2000),
        "compute_input": (1, 1000),
        "compute_infer": (1, 3000),
        "compute_output": (1, 4000),
    }
    (median,) = latencies.read(0, 9 * MILLI)[2]
    assert median == pytest.approx(10_000, rel=0.01)


def test_what_the_stub_says_of_its_own_time_is_not_believed_beyond_reason() -> None:
    statistics = ModelStatistics()
    statistics.settled(request(begun=1000, computed=1100, execute=10**15), RESPONSE, True, 0, 1200)
    statistics.count()
    assert (statistics.round_trips, statistics.round_trip_ns) == (0, 0)


def test_one_that_finds_no_room_is_rejected() -> None:
    statistics = ModelStatistics()
    statistics.refused()
    assert (statistics.failures[Failure.REJECTED], of(statistics, "fail")) == (1, {"count": 1, "ns": 0})


def test_many_are_counted_without_being_asked_for() -> None:
    statistics = ModelStatistics()
    for _ in range(1000):
        statistics.settled(request(begun=1000, computed=1100), RESPONSE, True, 0, 1200)
    assert 900 < statistics.successes <= 1000
    assert of(statistics, "success") == {"count": 1000, "ns": 200_000}


def test_what_came_from_the_cache_is_a_success_without_compute() -> None:
    statistics = ModelStatistics(batching=True)
    hit = request(submitted=1000, begun=1050, size=4)
    hit.cached_ns = 40
    statistics.settled(hit, RESPONSE, True, 0, 1060)
    statistics.cache_missed(30)
    statistics.settled(request(submitted=1000, begun=1100, computed=1500, size=2), RESPONSE, True, 0, 1520)
    statistics.cache_filled(5)
    found = statistics.as_dict()
    assert (found["inference_count"], found["execution_count"], len(found["batch_stats"])) == (2, 1, 1)
    assert found["inference_stats"] == {
        "success": {"count": 2, "ns": 60 + 520},
        "fail": NOTHING,
        "queue": {"count": 2, "ns": 50 + 100},
        "compute_input": {"count": 1, "ns": 0},
        "compute_infer": {"count": 1, "ns": 400},
        "compute_output": {"count": 1, "ns": 20},
        "cache_hit": {"count": 1, "ns": 40},
        "cache_miss": {"count": 1, "ns": 35},
    }


def test_a_warm_up_is_not_counted() -> None:
    statistics = ModelStatistics(decoupled=True)
    made = failed(Failure.BACKEND, begun=1100, computed=1500)
    made.warmup = True
    statistics.settled(made, InternalError("no"), True, 1200, 1520)
    assert statistics.as_dict() == ModelStatistics(decoupled=True).as_dict()
