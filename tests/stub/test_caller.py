"""Calls of other models at the stub's end (spec 3): what goes up, what becomes of what comes down, and that nothing stays lent."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np
import pytest
from leaks import eventually
from stub_runtime import FOREIGN, Runtime, running
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.dtype import BY_NAME
from stublet.shm.message import BLOCKING, STREAM, ErrorCode, decode_down, pack
from stublet.shm.polling import PollBudget
from stublet.stub.caller import NOT_NOW, Caller
from stublet.stub.error import TritonModelException
from stublet.stub.host import host
from stublet.stub.inbox import Inbox
from stublet.stub.memory import REFERENCE_BYTES
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

FP32 = BY_NAME["FP32"]
SECONDS = 30.0

Row = Tuple[Any, ...]


class Desk:
    """A caller and its rings; the test is the server."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.blocks_execute = False
        channel = runtime.channel
        self.inbox = Inbox(channel.consumers["down"], channel.bells["down"], self.route, lambda: None, channel.words.shares_core)
        self.caller = Caller(self.inbox, runtime.outbox, runtime.memory, PollBudget(0), lambda: self.blocks_execute)
        self.caller.allowed = True

    def route(self, record: bytes) -> None:
        _, releases, _, replies = decode_down(record)
        self.runtime.memory.release(releases)
        for reply in replies:
            self.caller.route(reply)

    def calls(self) -> List[Row]:
        """The calls that have come up."""
        found: List[Row] = []

        def look() -> bool:
            found.extend(call for _, _, calls in self.runtime.records() for call in calls)
            return bool(found)

        assert eventually(look)
        return found

    def reply(self, *replies: Row, releases: Sequence[Tuple[int, int]] = ()) -> None:
        assert self.runtime.channel.producers["down"].push(pack((1, releases, (), replies)))
        self.runtime.channel.producers["down"].ring()

    def answer(self, call: int, value: float, final: bool = True, nbytes: int = 4, offset: int = 0) -> Row:
        """A reply with one output of another stub's."""
        self.runtime.store.others[FOREIGN].memory[offset : offset + nbytes] = np.full(nbytes // 4, value, np.float32).tobytes()
        return call, final, ((FOREIGN, offset, nbytes),), (("answer", FP32.code, (nbytes // 4,), 0, 0, nbytes),), (), ""


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with running(monkeypatch) as runtime:
        desk = Desk(runtime)
        monkeypatch.setattr(host, "caller", desk.caller)
        run = desk.inbox._coroutines._run

        def until_the_end() -> None:
            with suppress(SystemExit):
                run()

        def end(*_: Any) -> None:
            raise SystemExit

        desk.inbox._coroutines._run = until_the_end  # type: ignore[method-assign]
        yield desk
        desk.inbox.wait = end  # type: ignore[method-assign]
        desk.inbox._coroutines._needed.release()
        for thread in threading.enumerate():
            if thread.name == "stublet-replies":
                thread.join(SECONDS)


def request(*values: float, **more: Any) -> InferenceRequest:
    given = {"model_name": "callee", "requested_output_names": ["answer"], "inputs": [Tensor("x", np.array(values, np.float32))], **more}
    return InferenceRequest(**given)


def value_of(response: Any) -> List[float]:
    assert isinstance(response, InferenceResponse) and not response.has_error()
    (tensor,) = response.output_tensors()
    assert tensor.name() == "answer"
    return tensor.as_numpy().tolist()  # type: ignore[no-any-return]


def gone(desk: Desk) -> List[Tuple[int, int]]:
    """Blocks of the other stub that are given back."""
    gc.collect()
    found = list(desk.runtime.memory.dropped)
    desk.runtime.memory.dropped.clear()
    return found


# ---- one response ----


@pytest.mark.parametrize("blocks_execute", [True, False])
def test_a_call_goes_up_and_its_response_comes_down(desk: Desk, blocks_execute: bool) -> None:
    desk.blocks_execute = blocks_execute
    desk.reply(desk.answer(0, 7.0))
    assert value_of(
        request(1, 2, request_id="id", correlation_id="c", flags=1, timeout=5, model_version=3, parameters={"a": 1}).exec()
    ) == [7]
    ((number, flags, model, version, blocks, inputs, requested, extras),) = desk.calls()
    assert (number, flags, model, version) == (0, BLOCKING if blocks_execute else 0, "callee", 3)
    assert inputs == (("x", FP32.code, (2,), 0, 0, 8),) and requested == ("answer",)
    assert extras == ("id", '{"a": 1}', "c", 1, 5)
    assert np.frombuffer(desk.runtime.store.bytes_at(*blocks[0], 8), np.float32).tolist() == [1, 2]
    desk.runtime.memory.release(blocks)
    assert desk.runtime.store.in_use() == 0 and desk.caller._open == {}


def test_a_thread_may_call_while_another_waits(desk: Desk) -> None:
    found = {}

    def work(value: float) -> None:
        found[value] = value_of(request(value).exec())

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    calls: List[Row] = []
    while len(calls) < 8:
        calls += desk.calls()
    for number, (call, *_, blocks, _, _, _) in enumerate(reversed(calls)):
        value = np.frombuffer(desk.runtime.store.bytes_at(*blocks[0], 4), np.float32)[0]
        desk.reply(desk.answer(call, value * 10, offset=64 * number))
    for thread in threads:
        thread.join(SECONDS)
    assert found == {value: [value * 10] for value in range(8)}


@pytest.mark.parametrize("nbytes", [4, LARGE_BYTES])
def test_an_output_is_given_back_when_it_is_no_longer_viewed(desk: Desk, nbytes: int) -> None:
    desk.reply(desk.answer(0, 7.0, nbytes=nbytes))
    response: Any = request(1).exec()
    copied = nbytes < LARGE_BYTES
    assert gone(desk) == ([(FOREIGN, 0)] if copied else [])
    array = response.output_tensors()[0].as_numpy()
    del response
    array[0] = 1
    assert gone(desk) == [] and array.size == nbytes // 4
    assert desk.runtime.store.bytes_at(FOREIGN, 0, 4) == np.float32(7).tobytes(), "what is written to it stays private"
    del array
    assert gone(desk) == ([] if copied else [(FOREIGN, 0)])


def test_an_error_is_in_the_response(desk: Desk) -> None:
    desk.reply((0, True, (), (), (int(ErrorCode.NOT_FOUND), "no such model"), ""))
    response: Any = request(1).exec()
    assert response.has_error() and response.output_tensors() == []
    assert (response.error().code(), response.error().message()) == (ErrorCode.NOT_FOUND, "no such model")


def test_outside_of_execute_it_is_refused(desk: Desk) -> None:
    desk.caller.allowed = False
    for stream in (False, True):
        with pytest.raises(TritonModelException) as raised:
            request(1).exec(decoupled=stream)
        assert str(raised.value) == NOT_NOW
    assert desk.runtime.records() == []


def test_a_request_of_the_server_cannot_be_executed(desk: Desk) -> None:
    (received,), execution = desk.runtime.begin(desk.runtime.request([1]))
    with pytest.raises(TritonModelException, match="make an InferenceRequest of its inputs"):
        received.exec()
    execution.raised(ValueError())


@pytest.mark.parametrize("how", ["the tensors", "the record"])
def test_without_room_it_is_an_error_response(desk: Desk, how: str) -> None:
    desk.runtime.store.room = 0 if how == "the tensors" else 64 << 10
    made = request(*[1.0] * (REFERENCE_BYTES // 4), parameters={} if how == "the tensors" else {"a": "x" * 90_000})
    response: Any = made.exec()
    assert response.has_error() and "no room for" in response.error().message()
    (again,) = made.exec(decoupled=True)  # type: ignore[misc]
    assert again.has_error()
    del made
    assert desk.runtime.store.in_use() == 0 and desk.caller._open == {} and desk.runtime.records() == []


# ---- a stream ----


def test_a_stream_comes_one_by_one(desk: Desk) -> None:
    responses: Any = request(1).exec(decoupled=True)
    ((number, flags, *_),) = desk.calls()
    assert flags == STREAM
    desk.reply(desk.answer(number, 1, final=False))
    assert value_of(next(responses)) == [1]
    desk.reply(desk.answer(number, 2, final=False, offset=64), (number, True, (), (), (), ""))
    second, last = list(responses)
    assert value_of(second) == [2] and last.output_tensors() == [] and not last.has_error()
    assert desk.caller._open == {}


def test_what_nobody_takes_is_given_back(desk: Desk) -> None:
    """Whether it came before the iterator was dropped, or comes later."""
    responses: Any = request(1).exec(decoupled=True)
    ((number, *_),) = desk.calls()
    desk.reply(desk.answer(number, 1, final=False), desk.answer(number, 2, final=False, offset=64))
    desk.inbox.look()
    assert gone(desk) == []
    del responses
    assert gone(desk) == [(FOREIGN, 0), (FOREIGN, 64)]
    desk.reply(desk.answer(number, 3, offset=128))
    desk.inbox.look()
    assert gone(desk) == [(FOREIGN, 128)] and desk.caller._open == {}
    desk.reply(desk.answer(99, 3))
    desk.inbox.look()
    assert gone(desk) == [(FOREIGN, 0)], "so is the answer to a call that there is not"


def test_a_cancelled_stream_still_gives_what_comes(desk: Desk) -> None:
    responses: Any = request(1).exec(decoupled=True)
    ((number, *_),) = desk.calls()
    responses.cancel()
    assert desk.calls() == [(number,)]
    desk.reply(desk.answer(number, 1, final=False), (number, True, (), (), (7, "cancelled"), ""))
    first, last = list(responses)
    assert value_of(first) == [1] and last.has_error()
    responses.cancel()
    assert desk.runtime.records() == []


# ---- coroutines ----


def test_coroutines_wait_together(desk: Desk) -> None:
    async def gather() -> List[Any]:
        calls = [request(value).async_exec() for value in range(3)]
        for number in (2, 0, 1):
            desk.reply(desk.answer(number, number * 10.0, offset=64 * number))
        return await asyncio.gather(*calls)

    assert [value_of(response) for response in asyncio.run(gather())] == [[0], [10], [20]]
    assert eventually(lambda: not desk.inbox._lead.locked()), "nobody leads any more"


def test_a_coroutine_takes_a_stream(desk: Desk) -> None:
    async def collect() -> List[Any]:
        responses: Any = await request(1).async_exec(decoupled=True)
        found = []
        desk.reply(desk.answer(0, 1, final=False))
        async for response in responses:
            found.append([tensor.as_numpy().tolist() for tensor in response.output_tensors()])
            if len(found) == 1:
                desk.reply((0, True, (), (), (), ""))
        return found

    assert asyncio.run(collect()) == [[[1]], []]


def test_a_cancelled_coroutine_gives_its_call_up(desk: Desk) -> None:
    async def cancelled() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(request(1).async_exec(), 0.01)

    asyncio.run(cancelled())
    assert [call[:1] for call in desk.calls()] == [(0,), (0,)], "the call, and that it is cancelled"
    assert eventually(lambda: not desk.inbox._lead.locked())
    desk.reply(desk.answer(0, 1))
    desk.inbox.look()
    assert gone(desk) == [(FOREIGN, 0)]


def test_a_coroutine_may_stop_waiting_and_come_again(desk: Desk) -> None:
    """What comes is not lost, and the thread that waited for it does not wait for ever."""

    async def again() -> List[float]:
        responses: Any = await request(1).async_exec(decoupled=True)
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(responses.__anext__(), 0.01)
        desk.reply(desk.answer(0, 5))
        return value_of(await responses.__anext__())

    assert asyncio.run(again()) == [5]
    assert desk.inbox._coroutines._count == 0
    assert eventually(lambda: not desk.inbox._lead.locked())


def test_a_closed_loop_is_nobody(desk: Desk) -> None:
    loop = asyncio.new_event_loop()
    future: Any = loop.run_until_complete(started(request(1)))
    loop.close()
    desk.reply(desk.answer(0, 5))
    assert eventually(lambda: desk.inbox._coroutines._count == 0)
    desk.inbox.look()
    assert eventually(lambda: gone(desk) == [(FOREIGN, 0)])
    assert not future.done()


async def started(made: InferenceRequest) -> Any:
    return made.async_exec()
