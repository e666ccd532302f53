"""Which blocks of its requests the model still has after an execution, and what others see of those that it writes to."""

from __future__ import annotations

import gc
import threading
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
from stub_execution import LARGE, echo, execute, response, values
from stub_runtime import FOREIGN, Runtime, running
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

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
