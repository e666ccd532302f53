"""What ``execute`` may return (spec 2.4)."""

from __future__ import annotations

from typing import Any, Iterator, List

import pytest
from stub_execution import X, response
from stub_runtime import Runtime
from stublet.stub.error import TritonError, TritonModelException
from stublet.stub.exchange import Exchange
from stublet.stub.execution import check_returned
from stublet.stub.response import InferenceResponse


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
