"""Large inputs in shared memory of a client's: the model sees them where they are."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
from client_requests import LOST, SIZE, SMALL, START, at, echo, execute, request
from shared_memory import ClientFile
from stub_runtime import Runtime
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.message import ErrorCode
from stublet.stub import window as window_module
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

ALIGNED = 64 - START % 64
VIEWED = np.arange(3 * LARGE_BYTES // 8, dtype=np.float32)
"""One and a half times as large as has to be, so that it does not end with a page."""


def shows_client(file: ClientFile, array: np.ndarray, offset: int = ALIGNED) -> bool:
    """Whether the array shows the file."""
    before = array[0]
    file.put(np.float32([before + 1]), START + offset)
    shown = bool(array[0] == before + 1)
    file.put(np.float32([before]), START + offset)
    return shown


@pytest.mark.parametrize(
    "data, offset, viewed",
    [(VIEWED, ALIGNED, True), (VIEWED, ALIGNED + 64, True), (VIEWED, ALIGNED + 8, False), (VIEWED[: LARGE_BYTES // 4 - 1], ALIGNED, False)],
    ids=["large", "elsewhere", "not aligned", "small"],
)
def test_a_large_input_is_viewed_where_it_is(runtime: Runtime, file: ClientFile, data: np.ndarray, offset: int, viewed: bool) -> None:
    file.put(data, START + offset)

    def look(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        assert np.array_equal(array, data) and shows_client(file, array, offset) == viewed
        return [InferenceResponse([Tensor("out", SMALL)])]

    (result,) = execute(runtime, look, request(at(data, offset)))
    assert not result[6], result[6]
    runtime.memory.release(result[4])
    assert runtime.store.in_use() == 0


def test_where_nothing_can_be_guarded_it_is_copied(runtime: Runtime, file: ClientFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "guarded", lambda *_: None)
    file.put(VIEWED, START + ALIGNED)

    def look(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        assert np.array_equal(array, VIEWED) and not shows_client(file, array)
        return [InferenceResponse([Tensor("out", SMALL)])]

    (result,) = execute(runtime, look, request(at(VIEWED, ALIGNED)))
    assert not result[6], result[6]


@pytest.mark.parametrize("time", [1, 2, 3])
def test_what_is_written_to_a_view_is_gone_with_it(runtime: Runtime, file: ClientFile, time: int) -> None:
    def change(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        assert np.array_equal(array, VIEWED * time)
        array += 1
        return [InferenceResponse([Tensor("out", array)])]

    for _ in range(time):
        file.put(VIEWED * time, START + ALIGNED)
        (result,) = execute(runtime, change, request(at(VIEWED, ALIGNED)))
        assert np.array_equal(runtime.store.read((result[4], result[5]))[0][1], VIEWED * time + 1)  # type: ignore[arg-type]
        assert np.array_equal(file.array(VIEWED.shape, np.float32, START + ALIGNED), VIEWED * time)
        runtime.memory.release(result[4])
    assert runtime.store.in_use() == 0


def test_views_of_the_same_bytes_do_not_see_what_the_others_write(runtime: Runtime, file: ClientFile) -> None:
    file.put(VIEWED, START + ALIGNED)

    def change(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        arrays = [tensor.as_numpy() for one in requests for tensor in one.inputs()]
        for number, array in enumerate(arrays):
            array[:] = number
        assert [set(array.tolist()) for array in arrays] == [{number} for number in range(len(arrays))]
        return [InferenceResponse([Tensor("out", SMALL)]) for _ in requests]

    inputs = at(VIEWED, ALIGNED), at(VIEWED[:-64], ALIGNED + 64)
    results = execute(runtime, change, *[request(*inputs) for _ in range(4)])
    assert not any(result[6] for result in results)
    assert np.array_equal(file.array(VIEWED.shape, np.float32, START + ALIGNED), VIEWED)


@pytest.mark.parametrize("written", [False, True])
def test_a_view_that_the_model_keeps_becomes_its_own(runtime: Runtime, file: ClientFile, written: bool) -> None:
    kept: List[np.ndarray] = []

    def keep(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        if written:
            array[-1] = 7
        kept.append(array)
        return [InferenceResponse([Tensor("out", SMALL)])]

    for time in (1, 2):
        file.put(VIEWED * time, START + ALIGNED)
        (result,) = execute(runtime, keep, request(at(VIEWED, ALIGNED)))
        assert result[3] == () and not result[6]
    file.put(VIEWED * 3, START + ALIGNED)
    file.resize(0)
    for time, array in zip((1, 2), kept):
        expected = VIEWED * time
        expected[-1] = 7 if written else expected[-1]
        assert np.array_equal(array, expected)


def test_a_region_that_is_cut_short_while_the_model_looks_at_it(runtime: Runtime, file: ClientFile) -> None:
    file.put(VIEWED, START + ALIGNED)

    def lose(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        file.resize(START + ALIGNED + 4096)
        total = array.sum()
        file.resize(START + SIZE)
        return [InferenceResponse([Tensor("out", np.full(4, total))])]

    (result,) = execute(runtime, lose, request(at(VIEWED, ALIGNED)))
    assert (ErrorCode(result[6][0]), result[6][1]) == (ErrorCode.INVALID_ARG, LOST.format("input 'x'"))
    assert runtime.store.in_use() == 0
    file.put(VIEWED, START + ALIGNED)
    (result,) = execute(runtime, echo, request(at(VIEWED, ALIGNED)))
    assert np.array_equal(runtime.store.read((result[4], result[5]))[0][1], VIEWED)  # type: ignore[arg-type]


def test_one_that_is_cut_short_before_the_answer(decoupled: Runtime, file: ClientFile) -> None:
    file.put(VIEWED, START + ALIGNED)

    def lose(requests: List[InferenceRequest]) -> None:
        sender = requests[0].get_response_sender()
        sender.send(InferenceResponse([Tensor("out", SMALL)]))
        file.resize(START)
        sender.send(InferenceResponse([Tensor("out", SMALL)]))
        sender.send(flags=1)

    first, second, *_ = execute(decoupled, lose, request(at(VIEWED, ALIGNED)))
    assert not first[6] and second[6][1] == LOST.format("input 'x'")
    decoupled.memory.release(first[4])
