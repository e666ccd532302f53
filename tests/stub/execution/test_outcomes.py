"""What becomes of each request of an execution (spec 2.4 to 2.8)."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, List

import numpy as np
import pytest
from stub_execution import echo, error_of, execute, response, values
from stub_runtime import Runtime, running
from stublet.shm.message import EMPTY, FAILURE, FINAL, RESCHEDULE, RETURNED, ErrorCode
from stublet.stub.error import TritonError, TritonModelException
from stublet.stub.exchange import Exchange
from stublet.stub.request import RELEASE_RESCHEDULE, InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

# ---- what becomes of the requests ----


def test_each_request_gets_its_response(runtime: Runtime) -> None:
    results = execute(runtime, echo, runtime.request([1, 2]), runtime.request([3]))
    assert [result[:2] for result in results] == [(0, FINAL | RETURNED), (1, FINAL | RETURNED)]
    assert [values(runtime, result) for result in results] == [[(0, [1, 2])], [(0, [3])]]
    assert all(result[2] > 0 and result[3] == () and result[6:] == ((), "") for result in results)


def test_what_was_asked_for_is_all_that_is_sent(runtime: Runtime) -> None:
    def both(requests: List[InferenceRequest]) -> Any:
        outputs = [Tensor(name, np.array([number], np.float32)) for number, name in enumerate(("out", "other", "third"))]
        return [InferenceResponse(outputs, parameters={"a": 1}) for _ in requests]

    extras = ("", (1,), "{}", 0, 0, 0)
    first, second = execute(runtime, both, runtime.request([1], extras=extras), runtime.request([1]))
    assert values(runtime, first) == [(1, [1])] and values(runtime, second) == [(0, [0]), (1, [1])]
    assert first[7] == second[7] == '{"a": 1}'
    assert len(runtime.warnings) == 1


def test_one_of_them_may_fail(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        return [InferenceResponse(error=TritonError("wrong", TritonError.UNAVAILABLE)), response(1)]

    first, second = execute(runtime, execute_, runtime.request([1]), runtime.request([1]))
    assert error_of(first) == (ErrorCode.UNAVAILABLE, "wrong") and first[1] == FINAL | RETURNED
    assert error_of(second) is None


def test_an_exception_fails_those_that_are_not_finished(runtime: Runtime) -> None:
    senders = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        senders.extend(request.get_response_sender() for request in requests)
        senders[0].send(response(1), 1)
        senders[1].send(response(2))
        raise ValueError("wrong")

    batch = [runtime.request([1]) for _ in range(3)]
    sent, unfinished, *results = execute(runtime, execute_, *batch)
    assert (sent[:2], unfinished[:2]) == ((0, FINAL), (1, 0))
    assert [result[:2] for result in results] == [(0, RETURNED | EMPTY), (1, RETURNED | FINAL | FAILURE), (2, RETURNED | FINAL | FAILURE)]
    text = "Failed to process the request(s) for model 'model_0_0', message: ValueError: wrong"
    assert [error_of(result) for result in results] == [None, (ErrorCode.INTERNAL, text), (ErrorCode.INTERNAL, text)]
    ((level, file, line, logged, trace, requests),) = runtime.logged
    assert (level, file, logged, requests) == ("ERROR", "test_outcomes.py", text, "") and line > 0
    assert trace.startswith("Traceback") and trace.endswith("ValueError: wrong\n")
    for number, closed in enumerate(senders):
        expected = "cannot send more than one" if number < 2 else "has been closed"
        with pytest.raises(TritonModelException, match=expected):
            closed.send(response(1))
        with pytest.raises(TritonModelException, match="has been closed"):
            closed.send(flags=1)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_no_exception_ends_the_instance(runtime: Runtime, error: BaseException) -> None:
    def execute_(_: Any) -> Any:
        raise error

    (result,) = execute(runtime, execute_, runtime.request([1]))
    found = error_of(result)
    assert found is not None and found[1].endswith(type(error).__name__ + (": 3" if isinstance(error, SystemExit) else ""))
    assert values(runtime, execute(runtime, echo, runtime.request([5]))[0]) == [(0, [5])]


def test_a_cancelled_coroutine_is_told_as_such(runtime: Runtime) -> None:
    _, execution = runtime.begin(runtime.request([1]))
    execution.raised(asyncio.CancelledError())
    (result,) = runtime.results()
    found = error_of(result)
    assert found is not None and found[0] is ErrorCode.CANCELLED


def test_a_wrong_return_fails_all(runtime: Runtime) -> None:
    results = execute(runtime, lambda requests: [response(1)], runtime.request([1]), runtime.request([2]))
    assert [result[1] for result in results] == [RETURNED | FINAL | FAILURE] * 2
    for result in results:
        found = error_of(result)
        assert found is not None and "TritonModelException: Number of InferenceResponse objects" in found[1]
    assert runtime.store.in_use() == 0


def test_without_room_all_fail_and_nothing_stays_lent(runtime: Runtime) -> None:
    """The outputs of the first one had been placed."""

    def execute_(requests: List[InferenceRequest]) -> Any:
        return [InferenceResponse([Tensor("out", np.zeros(size, np.float32))]) for size in (10, 5000, 1 << 20)]

    results = execute(runtime, execute_, *[runtime.request([1]) for _ in range(3)])
    assert [result[1] for result in results] == [RETURNED | FINAL | FAILURE] * 3
    found = error_of(results[0])
    assert found is not None and "OutOfSharedMemory: no room for" in found[1]
    gc.collect()
    assert runtime.store.in_use() == 0


@pytest.mark.parametrize("fails", [True, False], ids=["error", "parameters"])
def test_without_room_for_the_record_each_is_told_so(runtime: Runtime, fails: bool) -> None:
    """What is said of the requests is longer than a slot of the ring, and there is nowhere else to put it."""
    runtime.store.room = 0

    def execute_(requests: List[InferenceRequest]) -> Any:
        if fails:
            raise ValueError("x" * 5000)
        return [InferenceResponse([], parameters={"a": "x" * 5000}), InferenceResponse([])]

    first, second = execute(runtime, execute_, runtime.request([1]), runtime.request([2]))
    found = error_of(first)
    assert first[1] == RETURNED | FINAL | FAILURE and found is not None and "no room for" in found[1]
    assert second[1] == RETURNED | FINAL | (FAILURE if fails else 0)
    assert (error_of(second) is None) != fails, "one for which there is room is told"


def test_senders_answer_where_none_is_returned(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        requests[0].get_response_sender().send(response(1), 1)
        requests[1].get_response_sender().send(response(2))
        kept.append(requests[1].get_response_sender())
        kept.append(requests[2].get_response_sender())
        return [None, None, None, response(4)]

    kept: List[Any] = []
    first, second, *results = execute(runtime, execute_, *[runtime.request([1]) for _ in range(4)])
    assert (first[:2], second[:2]) == ((0, FINAL), (1, 0))
    assert [result[1] for result in results] == [RETURNED | EMPTY] * 3 + [RETURNED | FINAL]
    kept.pop().send(response(3), 1)
    kept.pop().send(flags=1)
    third, second = runtime.results()
    assert (third[:2], values(runtime, third), second[:2]) == ((2, FINAL), [(0, [3])], (1, FINAL | EMPTY))


def test_who_is_never_answered_is_told(runtime: Runtime) -> None:
    (over,) = execute(runtime, lambda requests: None, runtime.request([1]))
    (last,) = runtime.results()
    assert over[:2] == (0, RETURNED | EMPTY)
    assert last[:2] == (0, FINAL | FAILURE) and error_of(last) is not None


def test_a_response_returned_counts_as_sent(runtime: Runtime) -> None:
    """A second one is refused as such, whoever is asked first."""
    senders = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        senders.append(requests[0].get_response_sender())
        return [response(1)]

    execute(runtime, execute_, runtime.request([1]))
    with pytest.raises(TritonModelException, match="Non-decoupled model cannot send more than one response"):
        senders[0].send(response(2))
    with pytest.raises(TritonModelException, match="Response sender has been closed"):
        senders[0].send(flags=1)


@pytest.mark.parametrize("flags", [0, 1])
def test_a_thread_that_sends_while_execute_returns_comes_first(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    """Each request gets one response, and the stub does not break its promises to the server."""
    (request,), execution = runtime.begin(runtime.request([1]))
    sender = request.get_response_sender()
    del request
    answer = runtime.placing.answer

    def slowly(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(runtime.placing, "answer", answer)
        placed = answer(*arguments, **named)
        sender.send(response(1), flags)
        return placed

    monkeypatch.setattr(runtime.placing, "answer", slowly)
    execution.returned([[response(2)]])
    sent, over = runtime.results()
    assert (sent[:2], values(runtime, sent)) == ((0, flags), [(0, [1])])
    assert over[:2] == (0, RETURNED | EMPTY)
    if not flags:
        sender.send(flags=1)
        assert runtime.results()[0][:2] == (0, FINAL | EMPTY)
    runtime.memory.release(sent[4])
    assert runtime.store.in_use() == 0


# ---- rescheduling ----


def reschedule(requests: List[InferenceRequest]) -> Any:
    requests[0].set_release_flags(RELEASE_RESCHEDULE)
    return None if Exchange.decoupled else [None, *[response(1) for _ in requests[1:]]]


def test_a_request_may_be_rescheduled(runtime: Runtime) -> None:
    first, second = execute(runtime, reschedule, runtime.request([1]), runtime.request([2]))
    assert first[:2] == (0, RETURNED | FINAL | EMPTY | RESCHEDULE)
    assert second[:2] == (1, RETURNED | FINAL)


def test_a_decoupled_one_too(decoupled: Runtime) -> None:
    kept: List[Any] = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        requests[0].get_response_sender().send(response(1))
        kept.append(requests[1].get_response_sender())
        return reschedule(requests)

    sent, first, second = execute(decoupled, execute_, decoupled.request([1]), decoupled.request([2]))
    assert sent[:2] == (0, 0)
    assert first[:2] == (0, RETURNED | FINAL | EMPTY | RESCHEDULE)
    assert second[:2] == (1, RETURNED | EMPTY)
    kept.pop().send(flags=1)


def test_an_exception_undoes_it(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        reschedule(requests)
        raise ValueError("wrong")

    (result,) = execute(runtime, execute_, runtime.request([1]))
    assert result[:2] == (0, RETURNED | FINAL | FAILURE) and error_of(result) is not None


@pytest.mark.parametrize("is_decoupled", [False, True])
def test_a_request_that_is_finished_is_not_rescheduled(monkeypatch: pytest.MonkeyPatch, is_decoupled: bool) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        requests[0].get_response_sender().send(response(1), 1)
        return reschedule(requests)

    with running(monkeypatch, is_decoupled) as runtime:
        sent, over = execute(runtime, execute_, runtime.request([1]))
        assert (sent[:2], over[:2]) == ((0, FINAL), (0, RETURNED | EMPTY))


# ---- decoupled models ----


def test_a_decoupled_execution_is_over_when_execute_returns(decoupled: Runtime) -> None:
    kept: List[Any] = []
    (over,) = execute(decoupled, lambda requests: kept.append(requests[0].get_response_sender()), decoupled.request([1]))
    assert over[:2] == (0, RETURNED | EMPTY)
    kept.pop().send(flags=1)
    assert decoupled.results()[0][:2] == (0, FINAL | EMPTY)


def test_a_decoupled_model_that_returns_something_fails(decoupled: Runtime) -> None:
    (result,) = execute(decoupled, lambda requests: [response(1)], decoupled.request([1]))
    found = error_of(result)
    assert result[:2] == (0, RETURNED | FINAL | FAILURE) and found is not None and "must return None." in found[1]


def test_a_coroutine_that_went_on_and_raised_ends_its_requests(decoupled: Runtime) -> None:
    requests, execution = decoupled.begin(*[decoupled.request([1]) for _ in range(2)])
    execution.went_on()
    requests[0].get_response_sender().send(response(1), 1)
    decoupled.records()
    execution.failed_later(ValueError("wrong"))
    (result,) = decoupled.results()
    found = error_of(result)
    assert result[:2] == (1, FINAL | FAILURE) and found is not None and found[1].endswith("ValueError: wrong")
