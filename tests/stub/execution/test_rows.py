"""Requests that lie in rows of one block: their batch is a view of it, and the block stays as long as anything of it is viewed."""

from __future__ import annotations

import gc
from typing import Any, Callable, List

import numpy as np
import pytest
from stub_execution import execute, response, values
from stub_runtime import REQUESTS, Row, Runtime
from stublet.shm.dtype import BY_NAME
from stublet.stub import triton_python_backend_utils as pb_utils
from stublet.stub.request import InferenceRequest

FP32 = BY_NAME["FP32"].code
BLOCK = 128 << 10
WIDE = 8 << 10
"""Floats in a row that is sent from where it lies."""


def in_rows(runtime: Runtime, *sizes: int, width: int = 2, gaps: int = 0, start: int = 0) -> List[Row]:
    """Requests of so many rows each, one after another in a block of ``BLOCK`` bytes. Row n is full of n."""
    memory = np.ndarray((BLOCK // 4 // width, width), np.float32, runtime.store.others[REQUESTS].memory, start)
    memory[:] = np.arange(len(memory)).reshape(-1, 1)
    requests, first = [], 0
    for size in sizes:
        runtime._keys += 1
        inputs = ((0, FP32, (size, width), 0, first * width * 4, size * width * 4),)
        requests.append((runtime._keys - 1, False, ((REQUESTS, start, BLOCK),), inputs, (), ()))
        first += size + gaps
    return requests


def test_the_batch_is_a_view_of_what_the_requests_have(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        batch = pb_utils.batch(requests, "x").as_numpy()
        assert batch.tolist() == [[0, 0], [1, 1], [2, 2]]
        batch[1:] += 10
        assert requests[1].inputs()[0].as_numpy().tolist() == [[11, 11], [12, 12]], "it is the same memory"
        return pb_utils.split(requests, [pb_utils.Tensor("out", batch * 2)])

    first, second = execute(runtime, execute_, *in_rows(runtime, 1, 2))
    assert values(runtime, first) == [(0, [[0, 0]])] and values(runtime, second) == [(0, [[22, 22], [24, 24]])]
    assert first[3] == second[3] == ()


@pytest.mark.parametrize("how", ["gap", "reversed", "blocks", "borrowed"])
def test_elsewhere_it_is_a_copy(runtime: Runtime, how: str) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        tensors = [request.inputs()[0].as_numpy() for request in requests]
        batch = pb_utils.batch(requests, "x").as_numpy()
        assert batch.tolist() == np.concatenate(tensors).tolist()
        assert not any(np.shares_memory(batch, tensor) for tensor in tensors)
        return pb_utils.split(requests, [pb_utils.Tensor("out", batch)])

    batch = in_rows(runtime, 2, 2, gaps=int(how == "gap"))
    if how == "reversed":
        batch = [(batch[0][0], *batch[1][1:]), (batch[1][0], *batch[0][1:])]
    elif how == "blocks":
        batch = [batch[0], (batch[1][0], False, ((REQUESTS, 64, BLOCK),), *batch[1][3:])]
    elif how == "borrowed":
        batch = [(request[0], True, *request[2:]) for request in batch]
    results = execute(runtime, execute_, *batch)
    assert all(not result[6] for result in results)


KEEPERS: List[Callable[[List[InferenceRequest]], Any]] = [
    lambda requests: requests,
    lambda requests: requests[0],
    lambda requests: requests[1].inputs()[0].as_numpy(),
    lambda requests: pb_utils.batch(requests, "x"),
    lambda requests: pb_utils.batch(requests, "x").as_numpy()[2:],
    lambda requests: np.from_dlpack(pb_utils.batch(requests, "x")),
]


@pytest.mark.parametrize("keep", KEEPERS)
@pytest.mark.parametrize("width", [2, WIDE])
def test_one_request_keeps_the_block_for_all_of_them(runtime: Runtime, keep: Any, width: int) -> None:
    """The block is pinned as a whole, so that it needs to be given back once only."""
    kept: List[Any] = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        kept.append(keep(requests))
        return [response(1) for _ in requests]

    results = execute(runtime, execute_, *in_rows(runtime, 1, 1, 1, width=width))
    assert [result[3] for result in results] == [(0,), (), ()]
    gc.collect()
    assert not runtime.memory.dropped and not runtime.records()
    kept.clear()
    gc.collect()
    assert list(runtime.memory.dropped) == [(REQUESTS, 0)]
    assert not runtime.memory._pins and not runtime.memory._homes


def test_large_rows_of_the_batch_are_sent_from_where_they_lie(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        return pb_utils.split(requests, [pb_utils.Tensor("out", pb_utils.batch(requests, "x").as_numpy())])

    results = execute(runtime, execute_, *in_rows(runtime, 1, 2, width=WIDE))
    assert [result[4] for result in results] == [((REQUESTS, 0),)] * 2
    assert [result[5][0][4] for result in results] == [0, WIDE * 4]


@pytest.mark.parametrize("index", [0, 1])
def test_large_rows_that_the_model_keeps_are_sent_as_they_were(runtime: Runtime, index: int) -> None:
    """Others read them while the model may write to them."""
    kept: List[Any] = []

    def execute_(requests: List[InferenceRequest]) -> Any:
        kept.append(requests[index].inputs()[0].as_numpy())
        return pb_utils.split(requests, [pb_utils.Tensor("out", pb_utils.batch(requests, "x").as_numpy())])

    results = execute(runtime, execute_, *in_rows(runtime, 1, 1, width=WIDE))
    kept[0][:] = 99
    assert [(result[4][0][0] == REQUESTS, values(runtime, result)[0][1][0][0]) for result in results] == [(False, 0), (False, 1)]


def test_a_result_made_in_place_is_sent_from_where_it_lies(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        out = pb_utils.empty("out", (3, WIDE), np.float32)
        np.add(pb_utils.batch(requests, "x").as_numpy(), 1, out=out.as_numpy())
        return pb_utils.split(requests, [out])

    results = execute(runtime, execute_, *in_rows(runtime, 1, 2, width=WIDE))
    (block,) = {result[4] for result in results}
    assert runtime.store.in_use() == 1
    assert [result[5][0][4] for result in results] == [0, WIDE * 4]
    assert [[row[0] for row in values(runtime, result)[0][1]] for result in results] == [[1], [2, 3]]
    runtime.memory.release([*block, *block])
    gc.collect()
    assert runtime.store.in_use() == 0


def test_an_execution_that_fails_keeps_nothing(runtime: Runtime) -> None:
    def execute_(requests: List[InferenceRequest]) -> Any:
        pb_utils.batch(requests, "x")
        raise ValueError("no")

    results = execute(runtime, execute_, *in_rows(runtime, 1, 1))
    assert [result[3] for result in results] == [(), ()] and all(result[6] for result in results)


def test_requests_of_other_models_are_not_joined_with_these(runtime: Runtime) -> None:
    other = pb_utils.InferenceRequest(inputs=[pb_utils.Tensor("x", np.ones((1, 2), np.float32))], requested_output_names=[], model_name="b")

    def execute_(requests: List[InferenceRequest]) -> Any:
        return pb_utils.split([*requests, other], [])

    results = execute(runtime, execute_, *in_rows(runtime, 1))
    assert "split: the requests are of several models: 'b', this one" in results[0][6][1]
