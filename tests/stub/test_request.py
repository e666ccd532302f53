"""``pb_utils.InferenceRequest``: spec 1.5, rule by rule."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
from stub_runtime import Runtime, running
from stublet.shm.message import pack
from stublet.stub.error import TritonModelException
from stublet.stub.host import host
from stublet.stub.preferred_memory import TRITONSERVER_MEMORY_CPU, PreferredMemory
from stublet.stub.request import InferenceRequest
from stublet.stub.tensor import Tensor
from stublet.stub.trace import InferenceTrace

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
    where, trace = PreferredMemory(TRITONSERVER_MEMORY_CPU), InferenceTrace()
    made = InferenceRequest("r", "c", [X], ["y", "y", "z"], "model", -1, 2, 5, where, trace, {"p": "v"})
    assert (made.request_id(), made.correlation_id(), made.flags(), made.timeout()) == ("r", "c", 2, 5)
    assert made.requested_output_names() == {"y", "z"}
    assert made.trace() is trace
    assert json.loads(made.parameters()) == {"p": "v"}


def test_flags_can_be_set() -> None:
    made = request()
    made.set_flags(1)
    assert made.flags() == 1
    with pytest.raises(TypeError, match="flags must be int, not NoneType"):
        made.set_flags(None)  # type: ignore[arg-type]
    for wrong in (-1, 2**32):
        with pytest.raises(TypeError, match=f"got {wrong}"):
            made.set_flags(wrong)
    assert made.flags() == 1


@pytest.mark.parametrize("name", ["correlation_id", "model_version", "flags", "timeout"])
def test_a_truth_value_counts_as_a_number(name: str) -> None:
    """It is an int, but would not travel as one."""
    made = request(**{name: True})
    sent = getattr(made, f"_{name}")
    assert sent == 1 and pack((sent,)) == pack((1,))
    made.set_flags(False)
    assert pack((made.flags(),)) == pack((0,))


@pytest.mark.parametrize(
    "changes",
    [
        {"correlation_id": -1},
        {"correlation_id": 2**64},
        {"flags": -1},
        {"flags": 2**32},
        {"timeout": -1},
        {"timeout": 2**64},
        {"model_version": 2**63},
        {"model_version": -(2**63) - 1},
    ],
    ids=str,
)
def test_a_number_that_cannot_travel_is_a_type_error(changes: Dict[str, Any]) -> None:
    (value,) = changes.values()
    with pytest.raises(TypeError, match=rf"^InferenceRequest: .*got .*{value}"):
        request(**changes)


@pytest.mark.parametrize(
    "changes", [{"correlation_id": 2**64 - 1}, {"flags": 2**32 - 1}, {"timeout": 2**64 - 1}, {"model_version": 2**63 - 1}], ids=str
)
def test_the_largest_numbers_travel(changes: Dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    assert pack((getattr(request(**changes), f"_{name}"),)) == pack((value,))


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
        ({"parameters": []}, "Expect <class 'dict'>, got <class 'list'>"),
        ({"parameters": {1: "a"}}, "Expect parameters keys to have type str, found type <class 'int'>"),
        ({"parameters": {"a": 1.5}}, "Expect parameters values to have type bool/int/str, found type <class 'float'>"),
    ],
)
def test_a_wrong_value_is_a_model_exception(changes: Dict[str, Any], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        request(**changes)
    assert str(raised.value) == text


# ---- what a model can do with one that it made ----


def test_one_that_the_model_made_has_a_sender_that_does_not_send() -> None:
    made = request()
    sender = made.get_response_sender()
    assert made.get_response_sender() is sender
    assert not made.is_cancelled() and not sender.is_cancelled()
    with pytest.raises(TritonModelException, match="Response sender has no reference to the decoupled state of the model"):
        sender.send(flags=1)


def test_its_trace_is_one_object() -> None:
    made = request()
    assert made.trace() is made.trace() and made.trace().get_context() is None


@pytest.mark.parametrize("flags, error", [(None, TypeError), ("1", TypeError), (0, TritonModelException), (3, TritonModelException)])
def test_release_flags_are_one_of_two(flags: Any, error: type) -> None:
    made = request()
    for right in (1, 2):
        made.set_release_flags(right)
    with pytest.raises(error):
        made.set_release_flags(flags)


class Executed:
    """``host.caller``."""

    def __init__(self) -> None:
        self.calls: List[Tuple[Any, ...]] = []

    def execute(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        return "response"

    async def execute_async(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        return "response"


@pytest.mark.parametrize("decoupled", [False, True, 1, 0])
def test_it_is_executed_by_the_caller_of_its_process(monkeypatch: pytest.MonkeyPatch, decoupled: Any) -> None:
    caller, made = Executed(), request()
    monkeypatch.setattr(host, "caller", caller)
    assert made.exec(decoupled=decoupled) == made.exec(decoupled) == "response"
    assert caller.calls == [(made, bool(decoupled))] * 2 and type(caller.calls[0][1]) is bool

    async def call() -> Any:
        return await made.async_exec(decoupled=decoupled), asyncio.get_running_loop()

    answer, loop = asyncio.run(call())
    assert answer == "response" and caller.calls[2] == (made, bool(decoupled), loop)


def test_a_coroutine_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        request().async_exec()


def test_nobody_executes_it_outside_a_server() -> None:
    with pytest.raises(TritonModelException, match=r"^BLS is only supported during the 'execute' function.$"):
        request().exec()


# ---- those that come from the server ----


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch) as runtime:
        yield runtime


def test_a_received_request_says_what_came(runtime: Runtime) -> None:
    extras = ("id", (1,), '{"a": 1.5}', "sequence", 3, 77)
    (first, second), execution = runtime.begin(runtime.request([1, 2], [3], extras=extras), runtime.request([4]))
    assert [(tensor.name(), tensor.as_numpy().tolist()) for tensor in first.inputs()] == [("x", [1, 2]), ("y", [3])]
    assert (first.request_id(), first.correlation_id(), first.parameters(), first.flags(), first.timeout()) == (
        "id",
        "sequence",
        '{"a": 1.5}',
        3,
        77,
    )
    assert first.requested_output_names() == {"other"}
    assert [tensor.name() for tensor in second.inputs()] == ["x"], "an optional input is simply not there"
    assert (second.request_id(), second.correlation_id(), second.parameters(), second.flags(), second.timeout()) == ("", 0, "{}", 0, 0)
    assert second.requested_output_names() == {"out", "other"}
    execution.raised(ValueError())


def test_a_received_request_does_not_share_its_set_of_outputs(runtime: Runtime) -> None:
    """The process has one such set for all requests that ask for every output."""
    (first,), execution = runtime.begin(runtime.request([1]))
    first.requested_output_names().clear()
    (second,), other = runtime.begin(runtime.request([1]))
    assert first.requested_output_names() == second.requested_output_names() == {"out", "other"}
    for done in (execution, other):
        done.raised(ValueError())


def test_a_received_request_has_a_sender_and_knows_of_its_cancellation(runtime: Runtime) -> None:
    (first, second), execution = runtime.begin(runtime.request([1]), runtime.request([2]))
    assert first.get_response_sender() is first.get_response_sender()
    runtime.channel.words.cancelled[1] = 1
    for thing in (second, second.get_response_sender()):
        assert thing.is_cancelled()
    assert not first.is_cancelled() and not first.get_response_sender().is_cancelled()
    runtime.channel.words.cancelled[1] = 0
    assert second.is_cancelled(), "once cancelled, always cancelled"
    execution.raised(ValueError())
    runtime.channel.words.cancelled[0] = 1
    assert not first.is_cancelled(), "that byte is another request's by now"
