"""``pb_utils.InferenceResponse``: spec 1.6, and the parameters of 1.5."""

from __future__ import annotations

import json
from typing import Any, Dict

import numpy as np
import pytest
from stublet.stub.error import TritonError, TritonModelException
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

X = Tensor("x", np.ones(1))

PARAMETER_ERRORS = [
    ([], "Expect <class 'dict'>, got <class 'list'>"),
    ("", "Expect <class 'dict'>, got <class 'str'>"),
    ([("a", 1)], "Expect <class 'dict'>, got <class 'list'>"),
    ({1: "a"}, "Expect parameters keys to have type str, found type <class 'int'>"),
    ({"a": 1.5}, "Expect parameters values to have type bool/int/str, found type <class 'float'>"),
    ({"a": None}, "Expect parameters values to have type bool/int/str, found type <class 'NoneType'>"),
    ({"a": 1, "b": [1]}, "Expect parameters values to have type bool/int/str, found type <class 'list'>"),
    ({"a": np.int64(1)}, "Expect parameters values to have type bool/int/str, found type <class 'numpy.int64'>"),
]


@pytest.mark.parametrize("parameters, expected", [(None, {}), ({}, {}), ({"a": True, "b": -1, "c": "ü"}, {"a": True, "b": -1, "c": "ü"})])
def test_parameters_are_json_text(parameters: Any, expected: Dict[str, Any]) -> None:
    made = InferenceResponse([X], parameters=parameters)
    assert type(made.parameters()) is str and json.loads(made.parameters()) == expected
    assert InferenceResponse().parameters() == "{}"


@pytest.mark.parametrize("tensors", [[], [X], (X, X)])
def test_a_response_says_what_it_was_given(tensors: Any) -> None:
    made = InferenceResponse(tensors)
    assert made.output_tensors() == list(tensors)
    assert not made.has_error() and made.error() is None
    assert InferenceResponse(output_tensors=tensors).output_tensors() == list(tensors)


def test_a_response_with_an_error() -> None:
    error = TritonError("wrong")
    made = InferenceResponse([], error)
    assert made.has_error() and made.error() is error
    assert InferenceResponse(error=error).output_tensors() == []


@pytest.mark.parametrize(
    "arguments",
    [{"output_tensors": None}, {"output_tensors": X}, {"output_tensors": [np.ones(1)]}, {"output_tensors": [X], "error": "wrong"}],
)
def test_a_response_of_wrong_types_is_a_type_error(arguments: Dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^InferenceResponse: "):
        InferenceResponse(**arguments)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"output_tensors": [None]}, "Output tensor for inference response should not be empty."),
        ({"output_tensors": [X, None]}, "Output tensor for inference response should not be empty."),
        *(({"parameters": parameters}, text) for parameters, text in PARAMETER_ERRORS),
    ],
)
def test_a_response_of_wrong_values_is_a_model_exception(arguments: Dict[str, Any], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        InferenceResponse(**arguments)
    assert str(raised.value) == text


def test_the_list_of_the_model_is_not_the_responses_own() -> None:
    tensors = [X]
    made = InferenceResponse(tensors)
    tensors.clear()
    assert made.output_tensors() == [X]


def test_one_that_was_received_says_what_came() -> None:
    error = TritonError("wrong")
    made = InferenceResponse._received([X], error, '{"a": 1.5}')
    assert (made.output_tensors(), made.error(), made.has_error(), made.parameters()) == ([X], error, True, '{"a": 1.5}')
