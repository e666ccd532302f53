"""``generate``, apart from any socket: what its flat JSON means, and that any bytes are a request or an error."""

from __future__ import annotations

import json
from typing import Any, Dict, Sequence, Tuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stublet.parent import Server, ServerError
from stublet.parent.errors import InvalidArgument
from stublet.parent.http.generate_json import GenerateRequest, parse, shape_of
from stublet.parent.model_config import TensorSpec
from stublet.shm.dtype import BY_NAME, element_count

NO_SHAPE = "The schema can not convert input 'INPUT0' to tensor with proper shape"


def spec(*shape: int, dtype: str = "FP32") -> TensorSpec:
    return TensorSpec("INPUT0", BY_NAME[dtype], shape, False)


@pytest.mark.parametrize(
    "dims, count, shape",
    [
        ((4,), 4, (4,)),
        ((-1,), 0, (0,)),
        ((-1,), 7, (7,)),
        ((-1, 1), 2, (2, 1)),
        ((-1, -1), 6, (1, 6)),
        ((-1, 2, -1), 4, (1, 2, 2)),
        ((-1, -1, 3), 6, (1, 2, 3)),
        ((2, 3), 6, (2, 3)),
    ],
)
def test_shapes(dims: Sequence[int], count: int, shape: Tuple[int, ...]) -> None:
    assert shape_of(spec(*dims), count) == shape


@pytest.mark.parametrize("dims, count", [((4,), 8), ((4,), 1), ((-1, 2), 3), ((1,), 0), ((2, 3), 5)])
def test_counts_that_do_not_come_out_even(dims: Sequence[int], count: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        shape_of(spec(*dims), count)
    assert str(caught.value) == NO_SHAPE


@given(st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=4), st.integers(0, 40))
def test_a_shape_has_as_many_elements(dims: Sequence[int], count: int) -> None:
    try:
        shape = shape_of(spec(*dims), count)
    except InvalidArgument:
        assert -1 not in dims or count % element_count([size for size in dims if size != -1])
        return
    assert element_count(shape) == count
    assert all(want in (-1, got) for want, got in zip(dims, shape))


def parsed(embedded: Server, model: str, document: Any, **forwarded: str) -> GenerateRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse(embedded.core.find(model), body, forwarded)


FOUR = [1.0, 2.0, 3.0, 4.0]
GOOD = {"INPUT0": FOUR, "INPUT1": FOUR}


@pytest.mark.parametrize(
    "document, request_id, custom",
    [
        (GOOD, "", {}),
        ({**GOOD, "id": "7"}, "7", {}),
        ({**GOOD, "a": 1, "b": True, "c": "x", "d": 0.5, "big": 2**63}, "", {"a": 1, "b": True, "c": "x", "d": 0.5, "big": float(2**63)}),
        ({**GOOD, "a": 1, "parameters": {"a": 2, "b": 3}}, "", {"a": 2, "b": 3}),
        ({"INPUT0": FOUR, "parameters": {"INPUT1": FOUR}}, "", {}),
        ({**GOOD, "sequence_id": 7, "sequence_start": 1, "priority": -1}, "", {"sequence_id": 7, "sequence_start": 1, "priority": -1}),
        ({**GOOD, "triton_x": 1, "binary_data_output": True}, "", {"triton_x": 1, "binary_data_output": True}),
    ],
)
def test_inputs_and_parameters(embedded: Server, document: Any, request_id: str, custom: Dict[str, Any]) -> None:
    request = parsed(embedded, "add_sub", document)
    assert [place.shape for place in request.layout.placements] == [(4,), (4,)]
    assert request.request_id == request_id
    extras = request.extras or ("", None, "{}", 0, 0, 0)
    assert (extras[0], json.loads(extras[2]), extras[3:]) == (request_id, custom, (0, 0, 0))


def test_headers_come_before_the_body(embedded: Server) -> None:
    request = parsed(embedded, "add_sub", {**GOOD, "x-a": "body"}, **{"x-a": "header", "x-b": "header"})
    assert json.loads(request.extras[2]) == {"x-a": "body", "x-b": "header"}


NO_TYPE = "It should be either 'int', 'bool', or 'string'."


@pytest.mark.parametrize(
    "document, text",
    [
        ([1], "attempt to get members for non-object"),
        (b"", "failed to parse the request JSON buffer: Expecting value at 0"),
        ({**GOOD, "id": 7}, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ({**GOOD, "n": None}, f"parameter 'n' has invalid type. {NO_TYPE}"),
        ({**GOOD, "n": [1]}, f"parameter 'n' has invalid type. {NO_TYPE}"),
        ({**GOOD, "parameters": {"n": {}}}, f"Converting keyword: 'parameters': parameter 'n' has invalid type. {NO_TYPE}"),
        ({**GOOD, "parameters": 1}, "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"),
        ({**GOOD, "parameters": None}, "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"),
        (b'{"INPUT0": [1,2,3,4], "INPUT0": [1,2,3,4]}', "input 'INPUT0' already exists in request"),
        ({**GOOD, "parameters": {"INPUT0": FOUR}}, "input 'INPUT0' already exists in request"),
        ({**GOOD, "INPUT0": 1}, NO_SHAPE),
        ({**GOOD, "INPUT0": [[1.0, 2.0], [3.0, 4.0]]}, NO_SHAPE),
        ({**GOOD, "INPUT0": ["a"] * 4}, "Unable to parse 'data': attempt to access JSON non-number as double"),
        ({**GOOD, "INPUT0": [None] * 4}, "Unable to parse 'data': attempt to access JSON non-number as double"),
        (
            {"INPUT0": FOUR},
            "expected 2 inputs but got 1 inputs for model 'add_sub'. Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']. "
            "Please provide all required input(s).",
        ),
    ],
)
def test_errors(embedded: Server, document: Any, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsed(embedded, "add_sub", document)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "model, document, text",
    [
        (
            "every_type",
            {"IN_FP16": 1.0},
            "receiving FP16 data via JSON is not supported. Please use the binary data format for input IN_FP16",
        ),
        ("every_type", {"IN_BOOL": 1}, "Unable to parse 'data': attempt to access JSON non-boolean as boolean"),
        ("every_type", {"IN_BYTES": 1}, "Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
    ],
)
def test_types(embedded: Server, model: str, document: Any, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsed(embedded, model, document)
    assert str(caught.value) == text


def test_nesting_that_only_a_second_look_meets(embedded: Server) -> None:
    deep = b'{"INPUT0": 1, "INPUT0": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(InvalidArgument):
        parsed(embedded, "add_sub", deep)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["INPUT0", "a", "id", "parameters"]), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["INPUT0", "INPUT1", "IN_BYTES", "IN_INT64", "id", "parameters", "other", "é"])


@pytest.mark.parametrize("model", ["add_sub", "identity_bytes", "identity_batch", "every_type", "matrix"])
@given(st.dictionaries(NAMES, VALUES))
def test_any_document_is_a_request_or_a_server_error(embedded: Server, model: str, document: Any) -> None:
    try:
        request = parsed(embedded, model, document)
    except ServerError as error:
        assert error.http_status == 400
        return
    assert [place.nbytes for place in request.layout.placements] == [len(data) for data in request.data]


@given(st.binary(max_size=100))
@example(b'{"INPUT0":1,"INPUT0":1')
@example(b"\xff")
def test_any_bytes_are_a_request_or_a_server_error(embedded: Server, body: bytes) -> None:
    with pytest.raises(ServerError):
        parsed(embedded, "add_sub", body)
