"""``InferenceResponseSender`` (spec 1.7), and the exchange behind it: what may be sent when, and that a request never just disappears."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import pytest
from stub_runtime import Runtime, running
from stublet.shm.errors import OutOfSharedMemory
from stublet.shm.message import EMPTY, FAILURE, FINAL, RETURNED, ErrorCode
from stublet.stub.error import TritonError, TritonModelException
from stublet.stub.exchange import Exchange
from stublet.stub.memory import REFERENCE_BYTES
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.response_sender import COMPLETE_FINAL, InferenceResponseSender
from stublet.stub.tensor import Tensor

PREFIX = "Unable to send response. "
UNSUPPORTED = PREFIX + "Unsupported flag provided."
NO_RESPONSE = "Inference Response object must be provided when the response flags is set to zero."
OF_THE_MODEL = PREFIX + "Response sender has no reference to the decoupled state of the model."
SECOND = PREFIX + "Non-decoupled model cannot send more than one response."
END_FIRST = PREFIX + "Non-decoupled model cannot send complete final before sending a response."
CLOSED = PREFIX + "Response sender has been closed."


@pytest.fixture(params=[False, True], ids=["", "decoupled"])
def runtime(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with running(monkeypatch, decoupled=request.param) as runtime:
        yield runtime


@pytest.fixture
def decoupled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch, decoupled=True) as runtime:
        yield runtime


def response(*values: float, name: str = "out") -> InferenceResponse:
    return InferenceResponse([Tensor(name, np.array(values, np.float32))])


def sender(wanted: Tuple[str, ...] = ("out", "other"), key: int = 0) -> InferenceResponseSender:
    return InferenceResponseSender(Exchange(key, set(wanted)))


def error_of(sender: InferenceResponseSender, *arguments: Any) -> Optional[str]:
    try:
        sender.send(*arguments)
    except TritonModelException as error:
        return str(error)
    return None


def values(runtime: Runtime, result: Tuple[Any, ...]) -> List[Tuple[int, List[float]]]:
    """The outputs of a result."""
    return [(name, array.tolist()) for name, array in runtime.store.read((result[4], result[5]))]  # type: ignore[arg-type]


# ---- the rows of 1.7 ----


@pytest.mark.parametrize("flags", [2, 3, -1, 1 << 40])
@pytest.mark.parametrize("given", [None, response(1)])
def test_row_1_comes_before_everything(runtime: Runtime, flags: int, given: Optional[InferenceResponse]) -> None:
    closed = sender()
    closed.send(response(1), COMPLETE_FINAL)
    for one in (InferenceResponseSender(None), closed):
        assert error_of(one, given, flags) == UNSUPPORTED


def test_row_2_comes_before_the_state_of_the_sender(runtime: Runtime) -> None:
    closed = sender()
    closed.send(response(1), COMPLETE_FINAL)
    for one in (InferenceResponseSender(None), closed):
        assert error_of(one) == error_of(one, None, 0) == NO_RESPONSE


def test_row_3_a_request_of_the_models_own(runtime: Runtime) -> None:
    made = InferenceRequest(inputs=[], requested_output_names=[], model_name="model")
    for arguments in ((response(1),), (response(1), COMPLETE_FINAL), (None, COMPLETE_FINAL)):
        assert error_of(made.get_response_sender(), *arguments) == OF_THE_MODEL
    assert runtime.records() == []


Step = Tuple[Optional[int], int, Optional[str]]
"""What is sent (a value or nothing), with what flags, and the error."""

NOT_DECOUPLED: List[List[Step]] = [
    [(1, COMPLETE_FINAL, None), (2, 0, SECOND), (2, COMPLETE_FINAL, SECOND), (None, COMPLETE_FINAL, CLOSED)],
    [(1, 0, None), (2, 0, SECOND), (2, COMPLETE_FINAL, SECOND), (None, COMPLETE_FINAL, None), (2, 0, SECOND), (None, 1, CLOSED)],
    [(None, COMPLETE_FINAL, END_FIRST), (1, 0, None), (None, COMPLETE_FINAL, None)],
    [(None, COMPLETE_FINAL, END_FIRST), (1, COMPLETE_FINAL, None), (None, COMPLETE_FINAL, CLOSED)],
]
DECOUPLED: List[List[Step]] = [
    [(None, COMPLETE_FINAL, None), (None, COMPLETE_FINAL, CLOSED), (1, 0, CLOSED), (1, COMPLETE_FINAL, CLOSED)],
    [(1, 0, None), (2, 0, None), (3, 0, None), (None, COMPLETE_FINAL, None), (4, 0, CLOSED)],
    [(1, 0, None), (2, COMPLETE_FINAL, None), (3, COMPLETE_FINAL, CLOSED), (None, COMPLETE_FINAL, CLOSED)],
]


@pytest.mark.parametrize("is_decoupled, steps", [*((False, steps) for steps in NOT_DECOUPLED), *((True, steps) for steps in DECOUPLED)])
def test_rows_4_to_6_in_order(monkeypatch: pytest.MonkeyPatch, is_decoupled: bool, steps: List[Step]) -> None:
    with running(monkeypatch, is_decoupled) as runtime:
        one = sender(key=5)
        sent = []
        for value, flags, expected in steps:
            assert error_of(one, None if value is None else response(value), flags) == expected
            if expected is None:
                sent.append((5, flags | (EMPTY if value is None else 0), [] if value is None else [(0, [value])]))
        found = [(result[0], result[1], values(runtime, result)) for result in runtime.results()]
        assert found == sent, "what was refused was not sent"


@pytest.mark.parametrize("arguments", [("response",), (response(1), None), (response(1), "1"), (response(1), 1.0), (5, 1)])
def test_a_wrong_type_is_a_type_error(runtime: Runtime, arguments: Any) -> None:
    one = sender()
    with pytest.raises(TypeError, match=r"^InferenceResponseSender.send: "):
        one.send(*arguments)
    one.send(response(1), flags=COMPLETE_FINAL)


def test_the_arguments_have_names(decoupled: Runtime) -> None:
    one = sender()
    one.send(response=response(1), flags=0)
    one.send(flags=COMPLETE_FINAL)
    assert [result[1] for result in decoupled.results()] == [0, FINAL | EMPTY]


# ---- what is sent ----


def test_outputs_that_nobody_asked_for_are_dropped(runtime: Runtime) -> None:
    one = sender(wanted=("other",))
    tensors = [Tensor(name, np.array([value], np.float32)) for name, value in (("out", 1), ("other", 2), ("unknown", 3))]
    one.send(InferenceResponse(tensors, parameters={"a": 1}), COMPLETE_FINAL)
    (result,) = runtime.results()
    assert values(runtime, result) == [(1, [2])]
    assert result[6:] == ((), '{"a": 1}')
    assert runtime.warnings == ["the output 'unknown' of 'model_0_0' is not in its configuration and is dropped"]


def test_an_error_is_sent_alone(runtime: Runtime) -> None:
    one = sender()
    one.send(InferenceResponse([Tensor("out", np.ones(1))], TritonError("wrong", TritonError.NOT_FOUND)), COMPLETE_FINAL)
    assert runtime.results() == [(0, FINAL, 0, (), (), (), (ErrorCode.NOT_FOUND, "wrong"), "")]
    assert runtime.store.in_use() == 0


def test_an_error_does_not_end_a_stream(decoupled: Runtime) -> None:
    one = sender()
    one.send(InferenceResponse(error=TritonError("wrong")))
    one.send(response(1))
    one.send(flags=COMPLETE_FINAL)
    assert [result[1] for result in decoupled.results()] == [0, 0, FINAL | EMPTY]


def test_a_tensor_may_be_sent_again_and_again(decoupled: Runtime) -> None:
    one, array = sender(), np.zeros(1, np.float32)
    same = response()
    for value in range(3):
        array[0] = value
        one.send(InferenceResponse([Tensor("out", array)]))
        one.send(same)
    one.send(flags=COMPLETE_FINAL)
    assert [values(decoupled, result) for result in decoupled.results()[:-1]] == [
        [(0, [float(i // 2)])] if i % 2 == 0 else [(0, [])] for i in range(6)
    ]


@pytest.mark.parametrize("nbytes", [100, REFERENCE_BYTES])
def test_without_room_it_is_an_error_and_can_be_tried_again(runtime: Runtime, nbytes: int) -> None:
    one, big = sender(), InferenceResponse([Tensor("out", np.zeros(nbytes // 4, np.float32))])
    room, runtime.store.room = runtime.store.room, 0
    with pytest.raises(TritonModelException, match=r"^no room for"):
        one.send(big, COMPLETE_FINAL)
    runtime.store.room = room
    one.send(big, COMPLETE_FINAL)
    assert [result[1] for result in runtime.results()] == [FINAL]


def test_without_room_for_the_record_it_is_an_error_and_can_be_tried_again(runtime: Runtime) -> None:
    """What does not fit a slot of the ring lies in shared memory."""
    one, big = sender(), InferenceResponse([Tensor("out", np.zeros(1, np.float32))], parameters={"a": "x" * 90_000})
    room, runtime.store.room = runtime.store.room, 64 << 10
    with pytest.raises(TritonModelException, match=r"^no room for"):
        one.send(big, COMPLETE_FINAL)
    assert runtime.store.in_use() == 0, "its outputs were taken back"
    runtime.store.room = room
    one.send(big, COMPLETE_FINAL)
    ((_, flags, *_, parameters),) = runtime.results()
    assert flags == FINAL and len(parameters) > 90_000


def test_of_two_threads_that_send_the_last_response_one_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its outputs are taken back: they were placed before anybody could know."""
    one = sender()
    answer = runtime.placing.answer

    def slowly(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(runtime.placing, "answer", answer)
        one.send(response(1), COMPLETE_FINAL)
        return answer(*arguments, **named)

    monkeypatch.setattr(runtime.placing, "answer", slowly)
    assert error_of(one, response(2), COMPLETE_FINAL) == (CLOSED if Exchange.decoupled else SECOND)
    (result,) = runtime.results()
    assert values(runtime, result) == [(0, [1])]
    runtime.memory.release(result[4])
    assert runtime.store.in_use() == 0


def test_many_threads_send(decoupled: Runtime) -> None:
    threads_count, each = 16, 20
    senders = [sender(key=key) for key in range(4)]
    found: List[Tuple[Any, ...]] = []

    def work(number: int) -> None:
        for index in range(each):
            senders[number % 4].send(response(number * each + index))

    def read() -> None:
        for result in decoupled.results():
            found.append((result[0], *values(decoupled, result)[0][1]))
            decoupled.memory.release(result[4])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(threads_count)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read()
    read()
    for one in senders:
        one.send(flags=COMPLETE_FINAL)
    assert [result[:2] for result in decoupled.results()] == [(key, FINAL | EMPTY) for key in range(4)]
    assert sorted(found) == sorted((number % 4, number * each + index) for number in range(threads_count) for index in range(each))
    for number in range(threads_count):
        own = [value for _, value in found if value // each == number]
        assert own == sorted(own)


# ---- the end ----


def test_a_sender_that_is_dropped_ends_its_request_with_an_error(runtime: Runtime) -> None:
    one = sender(key=3)
    other = InferenceResponseSender(one._exchange)
    del one
    assert runtime.records() == []
    del other
    (result,) = runtime.results()
    assert (result[:2], result[6]) == ((3, FINAL | FAILURE), (ErrorCode.INTERNAL, result[6][1])) and "dropped" in result[6][1]
    assert ("COMPLETE_FINAL" if Exchange.decoupled else "execute returned None") in result[6][1]


def test_one_that_has_sent_something_too(runtime: Runtime) -> None:
    one = sender()
    one.send(response(1))
    del one
    assert [result[1] for result in runtime.results()] == [0, FINAL | FAILURE]


def test_one_that_is_finished_says_nothing_more(runtime: Runtime) -> None:
    one = sender()
    one.send(response(1), COMPLETE_FINAL)
    runtime.records()
    del one
    assert runtime.records() == []


def test_one_may_be_dropped_by_the_collector_while_another_is_sent(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle: List[Any] = [sender(key=1)]
    cycle.append(cycle)
    del cycle
    write = runtime.outbox.write

    def collect_and_write(*arguments: Any) -> None:
        monkeypatch.setattr(runtime.outbox, "write", write)
        gc.collect()
        write(*arguments)

    monkeypatch.setattr(runtime.outbox, "write", collect_and_write)
    sender(key=0).send(response(1), COMPLETE_FINAL)
    assert [(result[0], result[1]) for result in runtime.results()] == [(0, FINAL), (1, FINAL | FAILURE)]


def test_one_may_be_dropped_by_the_collector_while_a_send_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no other send for a long time."""
    cycle: List[Any] = [sender(key=1)]
    cycle.append(cycle)
    one = sender(key=0)
    one.send(response(1), COMPLETE_FINAL)
    assert one._exchange is not None
    check, checks = Exchange.check, []

    def collect_and_check(exchange: Exchange, given: Any) -> None:
        checks.append(given)
        if len(checks) > 1:
            cycle.clear()
            check(exchange, given)

    with monkeypatch.context() as patched:
        patched.setattr(Exchange, "check", collect_and_check)
        with suppress(TritonModelException):
            one.send(response(2), COMPLETE_FINAL)
    assert [(result[0], result[1]) for result in runtime.results()] == [(0, FINAL), (1, FINAL | FAILURE)]


def test_a_request_may_be_ended_for_the_model(runtime: Runtime) -> None:
    """As that of a coroutine that raised."""
    one = sender()
    assert one._exchange is not None
    one._exchange.fail(ErrorCode.CANCELLED, "cancelled")
    one._exchange.fail(ErrorCode.CANCELLED, "again")
    assert runtime.results() == [(0, FINAL | FAILURE, 0, (), (), (), (ErrorCode.CANCELLED, "cancelled"), "")]
    assert error_of(one, response(1)) == error_of(one, None, COMPLETE_FINAL) == CLOSED


def test_nothing_can_be_sent_when_the_instance_ends(runtime: Runtime) -> None:
    one = sender()
    runtime.outbox.closed = True
    text = error_of(one, response(1), COMPLETE_FINAL)
    assert text is not None and text.startswith(PREFIX)
    assert runtime.store.in_use() == 0
    del one
    assert runtime.records() == []


def test_it_knows_of_its_cancellation(runtime: Runtime) -> None:
    one, other = sender(key=4), sender(key=4 + 16384)
    assert not one.is_cancelled()
    runtime.channel.words.cancelled[4] = 1
    assert one.is_cancelled() and other.is_cancelled()
    runtime.channel.words.cancelled[4] = 0
    assert one.is_cancelled(), "it stays so"
    one.send(response(1), COMPLETE_FINAL)
    assert one.is_cancelled()
    closed = sender(key=5)
    closed.send(response(1), COMPLETE_FINAL)
    runtime.channel.words.cancelled[5] = 1
    assert not closed.is_cancelled(), "that byte is another request's by now"


@pytest.mark.parametrize("end", ["taken", "cancelled", "closed", "ending"])
def test_it_waits_for_its_client(decoupled: Runtime, end: str) -> None:
    words = decoupled.channel.words
    one, other = sender(key=4), sender(key=5)
    one.send(response(1))
    words.held[4] = 1
    sent: List[Optional[str]] = []
    thread = threading.Thread(target=lambda: sent.append(error_of(one, response(2))))
    thread.start()
    other.send(response(3), COMPLETE_FINAL)
    assert sent == []
    if end == "taken":
        words.held[4] = 0
    elif end == "cancelled":
        words.cancelled[4] = 1
    elif end == "closed":
        one.send(flags=COMPLETE_FINAL)
    else:
        decoupled.outbox.closed = True
    thread.join(10)
    (error,) = sent
    assert (error is None) == (end in ("taken", "cancelled"))
    decoupled.outbox.closed = False
    words.held[4] = words.cancelled[4] = 0
    if end != "closed":
        one.send(flags=COMPLETE_FINAL)


def test_it_does_not_run_out_of_memory_for_what_is_not_asked_for(runtime: Runtime) -> None:
    runtime.store.room = 0
    one = sender(wanted=())
    one.send(response(1), COMPLETE_FINAL)
    with pytest.raises(OutOfSharedMemory):
        runtime.memory.empty(1)
    assert [result[1] & ~RETURNED for result in runtime.results()] == [FINAL]
