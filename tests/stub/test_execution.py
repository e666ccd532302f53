"""Executions: what ``execute`` may return, what becomes of each request, and which blocks the model still has (spec 2.4 to 2.8)."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple

import numpy as np
import pytest
from stub_runtime import FOREIGN, Runtime, running
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.message import EMPTY, FAILURE, FINAL, RESCHEDULE, RETURNED, ErrorCode
from stublet.stub.error import TritonError, TritonModelException
from stublet.stub.exchange import Exchange
from stublet.stub.execution import check_returned
from stublet.stub.request import RELEASE_RESCHEDULE, InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

Row = Tuple[Any, ...]
Execute = Callable[[List[InferenceRequest]], Any]

LARGE = [1.0] * (LARGE_BYTES // 4)

X = Tensor("x", np.ones(1))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch) as runtime:
        yield runtime


@pytest.fixture
def decoupled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch, decoupled=True) as runtime:
        yield runtime


def response(*values: float) -> InferenceResponse:
    return InferenceResponse([Tensor("out", np.array(values, np.float32))])


def echo(requests: List[InferenceRequest]) -> List[InferenceResponse]:
    return [InferenceResponse([Tensor("out", request.inputs()[0].as_numpy())]) for request in requests]


def execute(runtime: Runtime, function: Execute, *batch: Row) -> List[Row]:
    """What a stub does with a batch; the results that come of it."""
    holder, execution = runtime.executions.begin(batch)
    try:
        values = [function(holder.pop())]
    except BaseException as error:
        execution.raised(error)
        return runtime.results()
    if Exchange.decoupled and values[0] is None:
        execution.went_on()
    else:
        execution.returned(values)
    return runtime.results()


def values(runtime: Runtime, result: Row) -> List[Tuple[int, List[float]]]:
    return [(name, array.tolist()) for name, array in runtime.store.read((result[4], result[5]))]  # type: ignore[arg-type]


def error_of(result: Row) -> Optional[Tuple[ErrorCode, str]]:
    return (ErrorCode(result[6][0]), result[6][1]) if result[6] else None


# ---- what execute returns ----


class Responses(List[Any]):
    """A list is a list."""


@pytest.fixture
def exchanges(runtime: Runtime) -> Iterator[List[Exchange]]:
    """Those of three requests."""
    made = [Exchange(key, {"out"}) for key in range(3)]
    yield made
    for exchange in made:
        exchange.closed = True


@pytest.mark.parametrize("kind", [list, Responses])
@pytest.mark.parametrize(
    "returned", [[response(1)] * 3, [None] * 3, [None, response(1), None], [InferenceResponse(error=TritonError("wrong"))] * 3]
)
def test_a_list_of_responses_and_nones_is_right(exchanges: List[Exchange], kind: type, returned: List[Any]) -> None:
    responses = kind(returned)
    assert check_returned(responses, exchanges, "model_0_0") is responses


def test_none_stands_for_as_many_nones(exchanges: List[Exchange]) -> None:
    assert check_returned(None, exchanges, "model_0_0") == [None] * 3


OTHER_LIST = "Expected an 'InferenceResponse' object in the execute function return list, found type "


@pytest.mark.parametrize(
    "returned, text",
    [
        ((), "Expected a list in the execute return, found type '<class 'tuple'>'."),
        ((response(1),) * 3, "Expected a list in the execute return, found type '<class 'tuple'>'."),
        (InferenceResponse(), "Expected a list in the execute return, found type '<class 'stublet.stub.response.InferenceResponse'>'."),
        (False, "Expected a list in the execute return, found type '<class 'bool'>'."),
        (
            [],
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            "InferenceRequest(s) size is:3, and InferenceResponse(s) size is:0\n",
        ),
        (
            [None] * 4,
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            "InferenceRequest(s) size is:3, and InferenceResponse(s) size is:4\n",
        ),
        ([response(1), X, response(1)], OTHER_LIST + "'<class 'stublet.stub.tensor.Tensor'>'."),
        (["x", None, None], OTHER_LIST + "'<class 'str'>'."),
        ([None, None, TritonError("wrong")], OTHER_LIST + "'<class 'stublet.stub.error.TritonError'>'."),
    ],
)
def test_anything_else_is_refused_with_tritons_text(exchanges: List[Exchange], returned: Any, text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        check_returned(returned, exchanges, "model_0_0")
    assert str(raised.value) == text


RESCHEDULED = "Expected a None object in the execute function return list for reschduled request, found type "


@pytest.mark.parametrize("given, kind", [(response(1), "stublet.stub.response.InferenceResponse"), ("x", "str")])
def test_a_rescheduled_request_has_no_response(exchanges: List[Exchange], given: Any, kind: str) -> None:
    exchanges[1].reschedule = True
    assert check_returned([given if given != "x" else None, None, None], exchanges, "model_0_0")
    with pytest.raises(TritonModelException) as raised:
        check_returned([None, given, None], exchanges, "model_0_0")
    assert str(raised.value) == f"{RESCHEDULED}'<class '{kind}'>'."


@pytest.mark.parametrize("flags, text", [(0, "cannot send more than one response"), (1, "cannot send more than one response")])
def test_a_request_that_was_answered_has_no_second_response(runtime: Runtime, exchanges: List[Exchange], flags: int, text: str) -> None:
    exchanges[2].send(response(1), flags == 1)
    with pytest.raises(TritonModelException, match=text):
        check_returned([None, None, response(1)], exchanges, "model_0_0")
    assert check_returned([None, None, None], exchanges, "model_0_0")


def test_a_closed_request_has_no_response(exchanges: List[Exchange]) -> None:
    exchanges[2].closed = True
    with pytest.raises(TritonModelException, match=r"Response sender has been closed\.$"):
        check_returned([None, None, response(1)], exchanges, "model_0_0")


@pytest.mark.parametrize("returned", [[], [response(1)], (), "x", False])
def test_a_decoupled_model_returns_none(decoupled: Runtime, returned: Any) -> None:
    exchange = Exchange(0, {"out"})
    with pytest.raises(TritonModelException) as raised:
        check_returned(returned, [exchange], "model_0_0")
    assert str(raised.value) == "Python model 'model_0_0' is using the decoupled mode and the execute function must return None."
    assert check_returned(None, [exchange], "model_0_0") == [None]
    exchange.closed = True


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
    assert (level, file, logged, requests) == ("ERROR", "test_execution.py", text, "") and line > 0
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


# ---- the memory of the requests ----

KEEPERS: List[Callable[[InferenceRequest], Any]] = [
    lambda request: request,
    lambda request: request.inputs(),
    lambda request: request.inputs()[0],
    lambda request: request.inputs()[0].as_numpy()[:1],
    lambda request: Tensor("out", request.inputs()[0].as_numpy()),
]


@pytest.mark.parametrize("keep", KEEPERS)
@pytest.mark.parametrize("value", [[1.0], LARGE], ids=["small", "large"])
@pytest.mark.parametrize("borrowed", [False, True])
def test_what_the_model_keeps_is_said_and_given_back_later(runtime: Runtime, keep: Any, value: Any, borrowed: bool) -> None:
    kept: List[Any] = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        kept.append(keep(requests[1]))
        return [response(1) for _ in requests]

    batch = [runtime.request([0.0]), runtime.request(value, borrowed=borrowed)]
    first, second = execute(runtime, execute_, *batch)
    assert first[3] == ()
    copied = borrowed and value is not LARGE
    assert second[3] == (() if copied else (0,))
    gc.collect()
    runtime.outbox.post(())
    assert runtime.records() == [((), (), ())], "it is still kept"
    kept.clear()
    gc.collect()
    runtime.outbox.post(())
    key = batch[1][2][0][:2]
    assert runtime.records() == [((() if copied else (key,)), (), ())]


@pytest.mark.parametrize("how", ["returned", "raised", "a wrong return"])
def test_nothing_is_kept_by_the_runtime_itself(runtime: Runtime, how: str) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        array = requests[0].inputs()[0].as_numpy()
        if how == "raised":
            raise ValueError("wrong")
        return [InferenceResponse([Tensor("out", array)])] * (1 if how == "returned" else 2)

    for _ in range(2):
        results = execute(runtime, execute_, runtime.request(LARGE))
        assert [result[3] for result in results] == ([()] if how == "returned" else [results[0][3]])
        runtime.outbox.post(())
        releases = [key for records in runtime.records() for key in records[0]]
        assert len(releases) == sum(len(result[3]) for result in results), "what was kept by the error was given back at once"


@pytest.mark.parametrize("borrowed", [False, True])
def test_an_input_that_is_returned_goes_by_reference(runtime: Runtime, borrowed: bool) -> None:
    batch = runtime.request(LARGE, borrowed=borrowed)
    (result,) = execute(runtime, echo, batch)
    assert result[4] == (batch[2][0][:2],) and result[3] == ()


def test_an_input_that_is_returned_and_kept_may_be_written_to_afterwards(runtime: Runtime) -> None:
    """The client gets what was returned."""
    kept: List[np.ndarray] = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        kept.append(requests[0].inputs()[0].as_numpy())
        return echo(requests)

    batch = runtime.request(LARGE)
    (result,) = execute(runtime, execute_, batch)
    assert result[3] == (0,)
    kept[0][:] = 5
    assert values(runtime, result) == [(0, LARGE)]
    kept.clear()
    runtime.memory.release(result[4])
    assert runtime.store.in_use() == 0 and list(runtime.memory.dropped) == [batch[2][0][:2]]


def test_an_input_that_is_sent_may_be_written_to_afterwards(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        array = requests[0].inputs()[0].as_numpy()
        requests[0].get_response_sender().send(InferenceResponse([Tensor("out", array)]), 1)
        array[:] = 5

    sent, over = execute(runtime, execute_, runtime.request(LARGE))
    assert values(runtime, sent) == [(0, LARGE)] and over[3] == ()


def test_what_is_written_to_a_borrowed_input_is_not_seen_by_its_owner(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        array = requests[0].inputs()[0].as_numpy()
        array[:] = 5
        return [InferenceResponse([Tensor("out", array)])]

    for value in ([1.0], LARGE):
        batch = runtime.request(value, borrowed=True)
        (result,) = execute(runtime, execute_, batch)
        assert values(runtime, result) == [(0, [5.0] * len(value))]
        (segment, offset, nbytes) = batch[2][0]
        assert segment == FOREIGN
        assert np.frombuffer(runtime.store.bytes_at(segment, offset, nbytes), np.float32).tolist() == value


class Interrupted:
    """A lock, just before which another thread has its turn."""

    def __init__(self, lock: Any, turn: Callable[[], None]) -> None:
        self._lock = lock
        self._turn: Optional[Callable[[], None]] = turn
        self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked

    def __enter__(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn()
        self._lock.__enter__()

    def __exit__(self, *arguments: Any) -> None:
        self._lock.__exit__(*arguments)


@pytest.mark.parametrize("how", ["returned", "raised", "went on"])
def test_a_block_is_not_given_back_before_it_is_said_that_it_was_kept(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Another thread drops the last view just when ``execute`` returns, and a third one writes."""
    with running(monkeypatch, decoupled=how == "went on") as runtime:
        kept: List[Any] = []

        def others() -> None:
            kept.clear()
            thread = threading.Thread(target=lambda: lock.__exit__(None, None, None) if lock.locked() else runtime.outbox.post(()))
            thread.start()
            thread.join()

        lock = runtime.outbox.lock
        requests, execution = runtime.begin(runtime.request(LARGE))
        kept.append(requests[0].inputs()[0])
        sender = requests[0].get_response_sender()
        del requests
        runtime.outbox.lock = Interrupted(lock, others)  # type: ignore[assignment]
        if how == "returned":
            execution.returned([[response(1)]])
        elif how == "raised":
            execution.raised(ValueError("wrong"))
        else:
            execution.went_on()
        runtime.outbox.post(())
        told = False
        for releases, results, _ in runtime.records():
            told = told or any(result[3] for result in results)
            assert told or not releases
        runtime.outbox.lock = lock
        if how == "went on":
            sender.send(flags=1)
