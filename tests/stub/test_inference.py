"""``pb_utils.InferenceRequest``, ``InferenceResponse`` and ``TritonError``: spec 1.5, 1.6, 1.8; and what ``execute`` may return (2.4)."""

from __future__ import annotations

import json
from typing import Any, Dict, List

import numpy as np
import pytest
from stublet.stub.error import TritonError, TritonModelException, headline, with_frames
from stublet.stub.execution import check_returned
from stublet.stub.inference import InferenceRequest, InferenceResponse
from stublet.stub.tensor import Tensor

X = Tensor("x", np.ones(1))
REQUIRED: Dict[str, Any] = {"inputs": [X], "requested_output_names": ["y"], "model_name": "model"}


def request(**changes: Any) -> InferenceRequest:
    return InferenceRequest(**{**REQUIRED, **changes})


# ---- requests ----


def test_a_request_says_what_it_was_given() -> None:
    made = request(request_id="r", correlation_id=2**64 - 1, flags=3, timeout=11_000_000_000, parameters={"a": 1})
    assert made.inputs() == [X]
    assert (made.request_id(), made.correlation_id(), made.flags(), made.timeout()) == ("r", 2**64 - 1, 3, 11_000_000_000)
    assert made.parameters() == '{"a": 1}'
    assert made.requested_output_names() == {"y"}


def test_the_defaults() -> None:
    made = InferenceRequest(inputs=[], requested_output_names=[], model_name="model")
    assert (made.inputs(), made.requested_output_names(), made.parameters()) == ([], set(), "{}")
    assert (made.request_id(), made.correlation_id(), made.flags(), made.timeout()) == ("", 0, 0, 0)


def test_the_positions_of_the_arguments() -> None:
    made = InferenceRequest("r", "c", [X], ["y", "y", "z"], "model", -1, 2, 5, {"p": "v"})
    assert (made.request_id(), made.correlation_id(), made.flags(), made.timeout()) == ("r", "c", 2, 5)
    assert made.requested_output_names() == {"y", "z"}
    assert json.loads(made.parameters()) == {"p": "v"}


def test_flags_can_be_set() -> None:
    made = request()
    made.set_flags(1)
    assert made.flags() == 1
    with pytest.raises(TypeError, match="flags must be int, not NoneType"):
        made.set_flags(None)  # type: ignore[arg-type]


def test_a_received_request_does_not_share_its_set_of_outputs() -> None:
    """The process has one such set for all requests that ask for every output."""
    every = {"y", "z"}
    received = InferenceRequest._received([X], every)
    received.requested_output_names().clear()
    assert received.requested_output_names() == {"y", "z"} == every
    assert (received.request_id(), received.correlation_id(), received.parameters(), received.flags(), received.timeout()) == (
        "",
        0,
        "{}",
        0,
        0,
    )


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_missing_argument_is_a_type_error(missing: str) -> None:
    with pytest.raises(TypeError, match=f"InferenceRequest: {missing} must be"):
        InferenceRequest(**{name: value for name, value in REQUIRED.items() if name != missing})


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": None},
        {"request_id": 1},
        {"correlation_id": None},
        {"inputs": None},
        {"inputs": X},
        {"inputs": [np.ones(1)]},
        {"inputs": ["x"]},
        {"requested_output_names": None},
        {"requested_output_names": "y"},
        {"requested_output_names": [None]},
        {"requested_output_names": [5]},
        {"model_name": None},
        {"model_name": 5},
        {"model_version": None},
        {"model_version": "1"},
        {"flags": None},
        {"timeout": 1.5},
    ],
    ids=str,
)
def test_a_wrong_type_is_a_type_error(changes: Dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^InferenceRequest: " + next(iter(changes))):
        request(**changes)


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


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"correlation_id": 1.5}, "Correlation ID must be integer or string"),
        ({"correlation_id": [1]}, "Correlation ID must be integer or string"),
        ({"request_id": "R", "inputs": [None]}, "Input tensor for request with id 'R' and model name 'model' should not be empty."),
        ({"inputs": [X, None]}, "Input tensor for request with id '' and model name 'model' should not be empty."),
        (
            {"request_id": "R", "requested_output_names": ["y", ""]},
            "Requested output name for request with id 'R' and model name 'model' should not be empty.",
        ),
        *(({"parameters": parameters}, text) for parameters, text in PARAMETER_ERRORS),
    ],
)
def test_a_wrong_value_is_a_model_exception(changes: Dict[str, Any], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        request(**changes)
    assert str(raised.value) == text


# ---- responses ----


@pytest.mark.parametrize("parameters, expected", [(None, {}), ({}, {}), ({"a": True, "b": -1, "c": "ü"}, {"a": True, "b": -1, "c": "ü"})])
def test_parameters_are_json_text(parameters: Any, expected: Dict[str, Any]) -> None:
    for made in (request(parameters=parameters), InferenceResponse([X], parameters=parameters)):
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


# ---- errors ----

CODES = ["UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"]


@pytest.mark.parametrize("number, name", list(enumerate(CODES)))
def test_an_error_is_a_message_and_a_code(number: int, name: str) -> None:
    code = getattr(TritonError, name)
    error = TritonError("wrong", code)
    assert (error.message(), error.code(), int(code)) == ("wrong", code, number)
    assert TritonError(message="wrong", code=code).code() is code
    assert repr(error) == f"TritonError('wrong', TritonError.{name})"


def test_an_error_is_internal_by_default_and_no_exception() -> None:
    assert TritonError("wrong").code() is TritonError.INTERNAL
    assert not issubclass(TritonError, BaseException) and issubclass(TritonModelException, Exception)


@pytest.mark.parametrize("arguments", [(), (None,), (5,), ("wrong", None), ("wrong", 1), ("wrong", "INTERNAL")])
def test_an_error_of_wrong_types_is_a_type_error(arguments: Any) -> None:
    with pytest.raises(TypeError, match=r"TritonError|missing 1 required"):
        TritonError(*arguments)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("wrong"), "ValueError: wrong"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
        (OSError(2, "no"), "FileNotFoundError: [Errno 2] no"),
    ],
)
def test_an_exception_is_told_with_its_frames_innermost_first(error: Exception, line: str) -> None:
    try:
        fail(error)
    except Exception as caught:
        text = with_frames(caught)
        assert headline(caught).startswith(line)
    first, empty, at, inner, outer = text.split("\n")
    assert first.startswith(line) and (empty, at) == ("", "At:")
    assert inner.startswith(f"  {__file__}(") and inner.endswith("): fail")
    assert outer.endswith("): test_an_exception_is_told_with_its_frames_innermost_first")


def test_a_syntax_error_is_told_with_its_line() -> None:
    with pytest.raises(SyntaxError) as raised:
        compile("x = = 1", "model.py", "exec")
    assert with_frames(raised.value) == '  File "model.py", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax'


# ---- what execute returns ----


class Responses(List[Any]):
    """A list is a list."""


@pytest.mark.parametrize("kind", [list, Responses])
@pytest.mark.parametrize("count", [1, 3])
def test_a_list_of_responses_is_right(kind: type, count: int) -> None:
    responses = kind(InferenceResponse() for _ in range(count))
    assert check_returned(responses, count) is responses


@pytest.mark.parametrize(
    "returned, requests, text",
    [
        (None, 1, "Expected a list in the execute return, found type '<class 'NoneType'>'."),
        ((), 1, "Expected a list in the execute return, found type '<class 'tuple'>'."),
        (InferenceResponse(), 1, "Expected a list in the execute return, found type '<class 'stublet.stub.inference.InferenceResponse'>'."),
        (
            [],
            2,
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            "InferenceRequest(s) size is:2, and InferenceResponse(s) size is:0\n",
        ),
        (
            [X],
            1,
            "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'stublet.stub.tensor.Tensor'>'.",
        ),
        (["x"], 1, "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'str'>'."),
    ],
)
def test_anything_else_is_refused_with_tritons_text(returned: Any, requests: int, text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        check_returned(returned, requests)
    assert str(raised.value) == text
