"""``pb_utils.batch`` and ``pb_utils.split`` as a model sees them, without a server."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.stub import triton_python_backend_utils as pb_utils
from stublet.stub.host import host

KINDS = {
    "BATCH_ELEMENT_COUNT": [3, 4, 10],
    "BATCH_ACCUMULATED_ELEMENT_COUNT": [3, 7, 17],
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": [0, 3, 7, 17],
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": [0] * 10,
    "BATCH_ITEM_SHAPE": [[3], [4], [5], [5]],
    "BATCH_ITEM_SHAPE_FLATTEN": [3, 4, 5, 5],
}


def request(model: str = "m", **inputs: Any) -> pb_utils.InferenceRequest:
    tensors = [pb_utils.Tensor(name, np.asarray(value)) for name, value in inputs.items()]
    return pb_utils.InferenceRequest(inputs=tensors, requested_output_names=[], model_name=model)


def rows(*shape: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def outputs(responses: Sequence[pb_utils.InferenceResponse]) -> List[List[Any]]:
    """The first output of each, as a list."""
    return [response.output_tensors()[0].as_numpy().tolist() for response in responses]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tells pb_utils what the configuration of the model says, beside inputs X (optional), RAGGED and Y, and outputs OUT and FLAT."""

    def configure(max_batch_size: int = 8, **sections: Any) -> None:
        document: Dict[str, Any] = {
            "max_batch_size": max_batch_size,
            "input": [
                {"name": "X", "optional": True, "allow_ragged_batch": False},
                {"name": "RAGGED", "optional": False, "allow_ragged_batch": True},
                {"name": "Y", "optional": False, "allow_ragged_batch": False},
            ],
            **sections,
        }
        monkeypatch.setattr(host, "model_config", json.dumps(document))

    return configure


def batch_input(kind: str, data_type: str = "TYPE_INT32", source: str = "RAGGED") -> Dict[str, Any]:
    return {"batch_input": [{"kind": kind, "target_name": ["MADE", "TWIN"], "data_type": data_type, "source_input": [source]}]}


SCATTER = {"batch_output": [{"kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "target_name": ["FLAT"], "source_input": ["RAGGED"]}]}


def test_requests_become_one_tensor_and_the_result_a_response_to_each() -> None:
    requests = [request(X=rows(1, 2)), request(X=rows(3, 2, start=10)), request(X=rows(2, 2, start=20))]
    batch = pb_utils.batch(requests, "X")
    assert batch is not None and batch.name() == "X" and batch.shape() == [6, 2]
    assert batch.as_numpy().tolist() == [[0, 1], [10, 11], [12, 13], [14, 15], [20, 21], [22, 23]]
    responses = pb_utils.split(requests, [pb_utils.Tensor("OUT", batch.as_numpy() * 2)])
    assert outputs(responses) == [[[0, 2]], [[20, 22], [24, 26], [28, 30]], [[40, 42], [44, 46]]]
    assert not any(response.has_error() for response in responses)


def test_one_request_is_its_own_batch() -> None:
    requests = [request(X=rows(2, 2))]
    batch = pb_utils.batch(requests, "X")
    assert batch is not None and batch.as_numpy().tolist() == rows(2, 2).tolist()


@pytest.mark.parametrize("made", ["array", "empty", "dlpack"])
def test_the_rows_of_a_response_are_views(made: str) -> None:
    requests = [request(X=rows(1, 2)), request(X=rows(2, 2))]
    tensor = pb_utils.Tensor("OUT", rows(3, 4)) if made == "array" else pb_utils.empty("OUT", (3, 4), np.float32)
    if made == "empty":
        tensor.as_numpy()[:] = rows(3, 4)
    whole = tensor.as_numpy() if made != "dlpack" else rows(3, 4)
    if made == "dlpack":
        tensor = pb_utils.Tensor.from_dlpack("OUT", whole)
    parts = [response.output_tensors()[0].as_numpy() for response in pb_utils.split(requests, [tensor])]
    assert [part.tolist() for part in parts] == [rows(1, 4).tolist(), rows(2, 4, start=4).tolist()]
    assert all(np.shares_memory(part, whole) for part in parts)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    item=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(["<i1", "<f2", "<f4", "<i8", "?", "O"]),
)
def test_splitting_a_batch_gives_the_requests_again(sizes: List[int], item: List[int], dtype: str) -> None:
    start, arrays = 0, []
    for size in sizes:
        values = np.arange(start, start + size * int(np.prod(item, dtype=int))).reshape(size, *item)
        arrays.append(np.vectorize(lambda i: b"s" * (i % 7), otypes=[object])(values) if dtype == "O" else values.astype(dtype))
        start += values.size
    requests = [request(X=array) for array in arrays]
    batch = pb_utils.batch(requests, "X")
    assert batch is not None and batch.shape() == [sum(sizes), *item]
    assert batch.as_numpy().tolist() == np.concatenate(arrays).tolist()
    assert outputs(pb_utils.split(requests, [batch])) == [array.tolist() for array in arrays]


def test_a_model_that_does_not_batch_has_a_row_for_each_request(configured: Any) -> None:
    configured(max_batch_size=0)
    requests = [request(X=[1, 2]), request(X=[3, 4])]
    batch = pb_utils.batch(requests, "X")
    assert batch is not None and batch.as_numpy().tolist() == [[1, 2], [3, 4]]
    assert outputs(pb_utils.split(requests, [batch])) == [[1, 2], [3, 4]]
    with pytest.raises(pb_utils.TritonModelException, match=r"has shape \[3\], but there are 2 requests"):
        pb_utils.split(requests, [pb_utils.Tensor("OUT", rows(3))])


def test_bfloat16_is_joined_and_split_over_dlpack() -> None:
    torch = pytest.importorskip("torch")
    data = [torch.ones((1, 2), dtype=torch.bfloat16), torch.zeros((2, 2), dtype=torch.bfloat16)]
    requests = [
        pb_utils.InferenceRequest(inputs=[pb_utils.Tensor.from_dlpack("X", part)], requested_output_names=[], model_name="m")
        for part in data
    ]
    batch = pb_utils.batch(requests, "X")
    assert torch.equal(torch.from_dlpack(batch), torch.cat(data))
    for response, part in zip(pb_utils.split(requests, [batch]), data):
        assert torch.equal(torch.from_dlpack(response.output_tensors()[0]), part)


# ---- ragged inputs, and those that are made of others ----


def test_a_ragged_input_comes_in_one_dimension(configured: Any) -> None:
    configured()
    requests = [request(RAGGED=rows(1, 3)), request(RAGGED=rows(2, 2, start=3))]
    batch = pb_utils.batch(requests, "RAGGED")
    assert batch is not None and batch.as_numpy().tolist() == [0, 1, 2, 3, 4, 5, 6]
    alike = pb_utils.batch([request(RAGGED=rows(1, 3))] * 2, "RAGGED")
    assert alike is not None and alike.shape() == [6], "also when no two differ"


@pytest.mark.parametrize("kind, expected", KINDS.items())
@pytest.mark.parametrize("data_type, dtype", [("TYPE_INT32", np.int32), ("TYPE_FP32", np.float32)])
def test_inputs_are_made_of_the_shapes_of_a_batch(configured: Any, kind: str, expected: Any, data_type: str, dtype: Any) -> None:
    """The shapes of Triton's guide to ragged batching, and a request of two."""
    configured(**batch_input(kind, data_type))
    requests = [request(RAGGED=rows(1, 3)), request(RAGGED=rows(1, 4)), request(RAGGED=rows(2, 5))]
    for name in ("MADE", "TWIN"):
        made = pb_utils.batch(requests, name)
        assert made is not None and made.name() == name
        array = made.as_numpy()
        assert array.dtype == dtype and array.tolist() == expected


def test_item_shapes_of_the_documentation(configured: Any) -> None:
    configured(**batch_input("BATCH_ITEM_SHAPE"))
    made = pb_utils.batch([request(RAGGED=rows(2, 3, 1)), request(RAGGED=rows(1, 2, 2))], "MADE")
    assert made is not None and made.as_numpy().tolist() == [[3, 1], [3, 1], [2, 2]]


def test_item_shapes_of_a_model_that_does_not_batch(configured: Any) -> None:
    configured(max_batch_size=0, **batch_input("BATCH_ITEM_SHAPE"))
    made = pb_utils.batch([request(RAGGED=rows(3, 1))], "MADE")
    assert made is not None and made.as_numpy().tolist() == [[3, 1]]


def test_an_input_of_an_optional_one_that_is_missing_is_missing(configured: Any) -> None:
    configured(**batch_input("BATCH_ELEMENT_COUNT", source="X"))
    assert pb_utils.batch([request(Y=rows(1, 1))], "MADE") is None


def test_an_output_is_scattered_by_the_shapes_of_an_input(configured: Any) -> None:
    configured(**SCATTER)
    requests = [request(RAGGED=rows(1, 3)), request(RAGGED=rows(2, 2))]
    flat = pb_utils.Tensor("FLAT", rows(7))
    assert outputs(pb_utils.split(requests, [flat])) == [[[0, 1, 2]], [[3, 4], [5, 6]]]
    assert outputs(pb_utils.split(requests, [pb_utils.Tensor("FLAT", rows(7, 1))])) == [[[0, 1, 2]], [[3, 4], [5, 6]]]
    with pytest.raises(pb_utils.TritonModelException) as caught:
        pb_utils.split(requests, [pb_utils.Tensor("FLAT", rows(8))])
    assert str(caught.value) == "split: output 'FLAT' has 8 elements, but its source input 'RAGGED' has 7 in the 2 requests"


def test_without_its_source_an_output_cannot_be_scattered(configured: Any) -> None:
    scatter = {"batch_output": [{**SCATTER["batch_output"][0], "source_input": ["X"]}]}
    configured(**scatter)
    with pytest.raises(pb_utils.TritonModelException, match="no request has the input 'X', by which an output is to be scattered"):
        pb_utils.split([request(Y=rows(1, 1))], [pb_utils.Tensor("FLAT", rows(1))])


# ---- what is wrong ----

TWO = [request(X=rows(1, 2)), request(X=rows(1, 2))]


@pytest.mark.parametrize(
    "requests, name, text",
    [
        ([], "X", "batch: there are no requests"),
        (TWO, "Z", "batch: there is no input 'Z'; the inputs are 'X'"),
        ([request()], "Z", "batch: there is no input 'Z'; the inputs are none"),
        (
            [request(X=rows(1, 2)), request(Y=rows(1, 2)), request()],
            "X",
            "batch: input 'X' is missing in 2 of 3 requests (at 1, 2 in the list); join only those that have it",
        ),
        (
            [request(X=rows(1, 2)), request(X=rows(1, 3))],
            "X",
            "batch: input 'X' has shape [1, 2] in request 0 and [1, 3] in request 1: they cannot be joined unless the configuration says "
            "'allow_ragged_batch'",
        ),
        ([request(X=rows())], "X", "batch: input 'X' has no batch dimension"),
        ([request(X=rows(1, 2)), request(X=[[1, 2]])], "X", "batch: input 'X' is FP32 in request 0 and INT64 in request 1"),
        ([request("a", X=rows(1, 2)), request("b", X=rows(1, 2))], "X", "batch: the requests are of several models: 'a', 'b'"),
    ],
)
def test_what_cannot_be_joined(requests: Any, name: str, text: str) -> None:
    with pytest.raises(pb_utils.TritonModelException) as caught:
        pb_utils.batch(requests, name)
    assert str(caught.value) == text


def test_an_optional_input_that_no_request_has_is_none(configured: Any) -> None:
    configured()
    requests = [request(Y=rows(1, 1)), request(Y=rows(1, 1))]
    assert pb_utils.batch(requests, "X") is None
    with pytest.raises(pb_utils.TritonModelException, match="missing in 1 of 2 requests"):
        pb_utils.batch([request(X=rows(1, 1)), requests[0]], "X")
    with pytest.raises(pb_utils.TritonModelException, match="there is no input 'Z'; the inputs are 'X', 'RAGGED', 'Y'"):
        pb_utils.batch(requests, "Z")


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (0,), ()])
def test_a_result_that_has_not_a_row_for_each_item(shape: Tuple[int, ...]) -> None:
    with pytest.raises(pb_utils.TritonModelException) as caught:
        pb_utils.split(TWO, [pb_utils.Tensor("OUT", np.zeros(shape, np.float32))])
    assert str(caught.value) == (
        f"split: output 'OUT' has shape {list(shape)}, but the 2 requests have 2 batch items, which has to be its first dimension"
    )


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: pb_utils.batch(TWO[0], "X"), "batch: requests must be list or tuple, not InferenceRequest"),
        (lambda: pb_utils.batch([1], "X"), "batch: each of requests must be InferenceRequest, not int"),
        (lambda: pb_utils.batch(TWO, 1), "batch: name must be str, not int"),
        (lambda: pb_utils.split(None, []), "split: requests must be list or tuple, not NoneType"),
        (lambda: pb_utils.split(TWO, rows(2, 2)), "split: output_tensors must be list or tuple, not ndarray"),
        (lambda: pb_utils.split(TWO, [rows(2, 2)]), "split: each of output_tensors must be Tensor, not ndarray"),
    ],
)
def test_arguments_of_wrong_types(call: Any, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == text


def test_splitting_nothing() -> None:
    assert [response.output_tensors() for response in pb_utils.split(TWO, [])] == [[], []]
    with pytest.raises(pb_utils.TritonModelException, match="split: there are no requests"):
        pb_utils.split([], [])


def test_where_requests_have_no_inputs_each_is_one_item(configured: Any) -> None:
    configured()
    none: Optional[Any] = pb_utils.batch([request(), request()], "X")
    assert none is None
    assert outputs(pb_utils.split([request(), request()], [pb_utils.Tensor("OUT", rows(2, 1))])) == [[[0]], [[1]]]
