"""Requests with tensors in shared memory of a client's, at the stub's end."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np
import pytest
from shared_memory import ClientFile, client_file
from stub_runtime import Runtime, running
from stublet.shm import bytes_codec
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.dtype import BY_NAME, BYTES
from stublet.shm.message import EMPTY, FAILURE, FINAL, IN_REGION, RETURNED, ErrorCode
from stublet.stub import window as window_module
from stublet.stub.client_regions import Region
from stublet.stub.memory import REFERENCE_BYTES
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor, empty
from stublet.stub.window import Window

Row = Tuple[Any, ...]

SIZE = 1 << 20
START = 4096 + 8
"""Where the region begins in the file."""

REGION = 7
FP32 = BY_NAME["FP32"]
LARGE = np.arange(REFERENCE_BYTES, dtype=np.float32)
SMALL = np.arange(4, dtype=np.float32)
LOST = "shared memory region 'mine' no longer has the bytes of {}: it was truncated after it was registered, or its file system is full"
SIZES = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
def file() -> Iterator[ClientFile]:
    with client_file(START + SIZE) as file:
        yield file


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, file: ClientFile, decoupled: bool) -> Iterator[Runtime]:
    window = Window(os.dup(file.fd), START, SIZE)
    with running(monkeypatch, decoupled) as runtime:
        runtime.regions[REGION] = Region("mine", window)
        yield runtime
    window.close()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, file: ClientFile) -> Iterator[Runtime]:
    with connected(monkeypatch, file, decoupled=False) as runtime:
        yield runtime


@pytest.fixture
def decoupled(monkeypatch: pytest.MonkeyPatch, file: ClientFile) -> Iterator[Runtime]:
    with connected(monkeypatch, file, decoupled=True) as runtime:
        yield runtime


_keys = itertools.count()


def request(*reads: Row, writes: Sequence[Row] = (), dtype: Any = FP32, extras: Row = ()) -> Row:
    """A request with an input in each of these places, each (offset, shape, nbytes), and outputs to go to (index, offset, room)."""
    inputs = [(index, dtype.code, shape, 1 + index, 0, nbytes) for index, (_, shape, nbytes) in enumerate(reads)]
    places = tuple((REGION, offset, nbytes) for offset, _, nbytes in reads)
    targets = tuple((index, REGION, offset, room) for index, offset, room in writes)
    return next(_keys), False, ((100, 0, 64),), tuple(inputs), extras, (places, targets)


def at(array: np.ndarray, offset: int = 0) -> Row:
    """A place where that array is."""
    return offset, array.shape, array.nbytes


def execute(runtime: Runtime, function: Callable[[List[InferenceRequest]], Any], *batch: Row) -> List[Row]:
    """What a stub does with a batch; the results that come of it."""
    holder, execution = runtime.executions.begin(batch)
    if holder[0]:
        execution.returned([function(holder.pop())])
    return runtime.results()


def echo(requests: List[InferenceRequest]) -> List[InferenceResponse]:
    return [InferenceResponse([Tensor("out", one.inputs()[0].as_numpy())]) for one in requests]


def only_error(result: Row) -> Tuple[ErrorCode, str]:
    """Of a request that was refused without being executed."""
    _, flags, _, kept, blocks, outputs, error, _ = result
    assert flags == FINAL | RETURNED | FAILURE and not kept and not blocks and not outputs
    return ErrorCode(error[0]), error[1]


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


# ---- inputs that are viewed where they are ----

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
