"""Requests with tensors in shared memory of a client's, at the stub's end: inputs that are copied, and outputs."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
from client_requests import FP32, LARGE, LOST, SIZE, SMALL, START, at, echo, execute, only_error, request
from shared_memory import ClientFile
from stub_runtime import Runtime
from stublet.shm import bytes_codec
from stublet.shm.dtype import BYTES
from stublet.shm.message import EMPTY, FAILURE, FINAL, IN_REGION, RETURNED, ErrorCode
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor, empty

SIZES = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


# ---- inputs ----


@SIZES
def test_the_model_sees_what_is_there(runtime: Runtime, file: ClientFile, data: np.ndarray) -> None:
    file.put(data, START + 64)
    seen: List[np.ndarray] = []

    def look(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        seen.extend(tensor.as_numpy().copy() for one in requests for tensor in one.inputs())
        return echo(requests)

    (result,) = execute(runtime, look, request(at(data, 64), at(data[:2], 64)))
    assert np.array_equal(seen[0], data) and np.array_equal(seen[1], data[:2])
    ((name, array),) = runtime.store.read((result[4], result[5]))  # type: ignore[arg-type]
    assert name == 0 and np.array_equal(array, data)
    runtime.memory.release(result[4])
    seen.clear()
    assert runtime.store.in_use() == 0


@SIZES
def test_what_the_model_writes_stays_its_own_and_what_the_client_writes_meanwhile_too(
    runtime: Runtime, file: ClientFile, data: np.ndarray
) -> None:
    file.put(data, START)

    def change(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        file.put(data * 3, START)
        assert np.array_equal(array, data)
        array += 1
        return [InferenceResponse([Tensor("out", array.copy())])]

    (result,) = execute(runtime, change, request(at(data)))
    assert np.array_equal(runtime.store.read((result[4], result[5]))[0][1], data + 1)  # type: ignore[arg-type]
    assert np.array_equal(file.array(data.shape, np.float32, START), data * 3)


def test_an_output_over_an_input_is_sent_as_it_lies(runtime: Runtime, file: ClientFile) -> None:
    file.put(LARGE, START)
    (result,) = execute(runtime, echo, request(at(LARGE)))
    assert runtime.store.in_use() == 1 == runtime.store.holders(result[4][0])


def test_an_input_that_the_model_keeps_is_not_what_it_has_sent(runtime: Runtime, file: ClientFile) -> None:
    file.put(LARGE, START)
    kept: List[np.ndarray] = []

    def keep(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        kept.append(requests[0].inputs()[0].as_numpy())
        return [InferenceResponse([Tensor("out", kept[0]), Tensor("other", kept[0])])]

    (result,) = execute(runtime, keep, request(at(LARGE)))
    kept[0][:] = 0
    found = runtime.store.read((result[4], result[5]))  # type: ignore[arg-type]
    assert all(np.array_equal(array, LARGE) for _, array in found) and len(found) == 2
    assert result[3] == (), "no block of the server's is kept"
    runtime.memory.release(result[4])
    assert runtime.store.in_use() == 1
    kept.clear()
    assert runtime.store.in_use() == 0


def test_an_input_that_a_model_sends_and_goes_on_with_is_copied(decoupled: Runtime, file: ClientFile) -> None:
    file.put(LARGE, START)

    def go_on(requests: List[InferenceRequest]) -> None:
        array = requests[0].inputs()[0].as_numpy()
        sender = requests[0].get_response_sender()
        sender.send(InferenceResponse([Tensor("out", array)]))
        array[:] = 0
        sender.send(flags=1)

    first, _, _ = execute(decoupled, go_on, request(at(LARGE)))
    assert np.array_equal(decoupled.store.read((first[4], first[5]))[0][1], LARGE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wire, count, text",
    [
        (bytes_codec.encode([b"a", b"bcd"]), 2, ""),
        (bytes_codec.encode([b"a"]), 2, "expected 2 string elements for inference input 'x' for model 'model', got 1"),
        (
            bytes_codec.encode([b"a", b"b", b"c"]),
            2,
            "unexpected number of string elements 3 for inference input 'x' for model 'model', expecting 2",
        ),
        (
            b"\x09\0\0\0abc",
            1,
            "incomplete string data for inference input 'x', expecting string of length 9 but only 3 bytes available",
        ),
        (b"\1\0", 1, "incomplete string length indicator for inference input 'x', expecting 4 bytes but only 2 bytes available"),
    ],
)
def test_strings_are_counted_when_they_are_there(runtime: Runtime, file: ClientFile, wire: bytes, count: int, text: str) -> None:
    file.put(wire, START)
    (result,) = execute(runtime, echo, request((0, (count,), len(wire)), dtype=BYTES))
    if text:
        assert only_error(result) == (ErrorCode.INVALID_ARG, text)
    else:
        ((_, array),) = runtime.store.read((result[4], result[5]))  # type: ignore[arg-type]
        assert array.tobytes() == wire


def test_only_the_requests_of_a_batch_that_have_their_inputs_are_executed(runtime: Runtime, file: ClientFile) -> None:
    file.put(SMALL, START)
    file.resize(START + SMALL.nbytes)  # the end of its page remains
    good, bad = at(SMALL), at(SMALL, SIZE // 2)
    calls: List[int] = []

    def count(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        calls.append(len(requests))
        return echo(requests)

    refused, *answered = execute(runtime, count, request(good), request(bad), request(good))
    text = LOST.format("input 'x'")
    assert only_error(refused) == (ErrorCode.INVALID_ARG, text)
    assert calls == [2] and [bool(result[6]) for result in answered] == [False, False]
    (refused,) = execute(runtime, count, request(good, bad))
    assert only_error(refused) == (ErrorCode.INVALID_ARG, text.replace("'x'", "'y'"))
    assert calls == [2], "a batch of which nothing is left is not executed"
    for result in answered:
        runtime.memory.release(result[4])
    assert runtime.store.in_use() == 0


def test_inputs_that_find_no_room(runtime: Runtime) -> None:
    runtime.store.room = 0
    code, text = only_error(*execute(runtime, echo, request(at(LARGE))))
    assert code is ErrorCode.UNAVAILABLE
    assert text.startswith("the inputs of a request to model 'model' find no room: ")


# ---- outputs ----


@SIZES
@pytest.mark.parametrize("over", ["input", "array", "empty", "strings"])
def test_an_output_is_written_to_its_place(runtime: Runtime, file: ClientFile, data: np.ndarray, over: str) -> None:
    file.put(data, START)
    strings = [str(value).encode() for value in data]

    def make(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        if over == "input":
            tensor = Tensor("out", array)
        elif over == "empty":
            tensor = empty("out", array.shape, "FP32")
            tensor.as_numpy()[:] = array
        else:
            tensor = Tensor("out", array.copy() if over == "array" else np.array(strings, object))
        return [InferenceResponse([Tensor("other", np.ones(2, np.float32)), tensor])]

    wire = bytes_codec.encode(strings) if over == "strings" else data.tobytes()
    (result,) = execute(runtime, make, request(at(data), writes=[(0, SIZE // 2 + 8, len(wire))]))
    _, _, _, _, blocks, outputs, error, _ = result
    dtype = BYTES if over == "strings" else FP32
    assert sorted(outputs) == [(0, dtype.code, data.shape, IN_REGION, 0, len(wire)), (1, FP32.code, (2,), 0, 0, 8)]
    assert file.bytes_at(START + SIZE // 2 + 8, len(wire)) == wire and not error
    assert file.bytes_at(START + SIZE // 2 + 8 + len(wire), 8) == bytes(8), "not a byte more"
    runtime.memory.release(blocks)
    assert runtime.store.in_use() == 0


def test_an_output_without_elements(runtime: Runtime, file: ClientFile) -> None:
    file.put(SMALL, START)

    def nothing(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        return [InferenceResponse([Tensor("out", np.empty((0, 3), np.float32))])]

    (result,) = execute(runtime, nothing, request(at(SMALL), writes=[(0, 0, 0)]))
    assert result[5] == ((0, FP32.code, (0, 3), IN_REGION, 0, 0),)


def test_an_output_that_is_too_large_is_not_written_nor_are_the_others(runtime: Runtime, file: ClientFile) -> None:
    file.put(SMALL, START)

    def both(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        return [InferenceResponse([Tensor("out", SMALL + 1), Tensor("other", SMALL + 1)])]

    (result,) = execute(runtime, both, request(at(SMALL), writes=[(0, 512, 64), (1, 1024, 15)]))
    text = "shared memory size specified with the request for output 'other' (15 bytes) should be at least 16 bytes to hold the results"
    assert (result[1], result[5], result[6]) == (FINAL | RETURNED | FAILURE, (), (ErrorCode.INTERNAL, text))
    assert file.bytes_at(START + 512, 1024) == bytes(1024)


def test_a_place_that_is_gone_when_an_output_is_to_be_written(runtime: Runtime, file: ClientFile) -> None:
    file.put(SMALL, START)

    def cut(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        array = requests[0].inputs()[0].as_numpy()
        file.resize(START)
        return [InferenceResponse([Tensor("out", array), Tensor("other", LARGE)])]

    (result,) = execute(runtime, cut, request(at(SMALL), writes=[(0, SIZE // 2, 64)]))
    text = LOST.format("output 'out'")
    assert (result[4], result[5], result[6]) == ((), (), (ErrorCode.INVALID_ARG, text))
    assert runtime.store.in_use() == 0, "what was placed of the other output is taken back"


def test_responses_of_a_decoupled_model_are_written_one_after_the_other(decoupled: Runtime, file: ClientFile) -> None:
    file.put(SMALL, START)
    found: List[np.ndarray] = []

    def stream(requests: List[InferenceRequest]) -> None:
        sender = requests[0].get_response_sender()
        for factor in range(3):
            sender.send(InferenceResponse([Tensor("out", SMALL * factor)]))
            found.append(file.array(SMALL.shape, np.float32, START + 256))
        sender.send(InferenceResponse([Tensor("out", LARGE)]), 1)

    *sent, last, over = execute(decoupled, stream, request(at(SMALL), writes=[(0, 256, 16)]))
    assert [array.tolist() for array in found] == [(SMALL * factor).tolist() for factor in range(3)]
    assert all(result[5][0][3] == IN_REGION for result in sent)
    assert last[6][0] == ErrorCode.INTERNAL and last[1] == FINAL | FAILURE and over[1] == RETURNED | EMPTY
