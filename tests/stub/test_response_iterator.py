"""``ResponseIterator``: replay and resumption (spec 3.6), from threads and from coroutines."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, List, Optional

import pytest
from stublet.stub.response import InferenceResponse
from stublet.stub.response_iterator import ResponseIterator


class Scripted:
    """A source of so many responses."""

    def __init__(self, count: int) -> None:
        self.responses = [InferenceResponse() for _ in range(count)]
        self.left: List[Optional[InferenceResponse]] = [*self.responses, None]
        self.cancelled = 0
        self.abandoned = 0
        self.waits = 0

    def next(self) -> Optional[InferenceResponse]:
        return self.left.pop(0)

    async def next_async(self) -> Optional[InferenceResponse]:
        self.waits += 1
        await asyncio.sleep(0)
        return self.left.pop(0)

    def cancel(self) -> None:
        self.cancelled += 1

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_it_gives_each_response_in_order(count: int) -> None:
    source = Scripted(count)
    iterator = ResponseIterator(source)
    assert iter(iterator) is iterator
    assert list(iterator) == source.responses
    assert source.left == [], "it asked no more often than it had to"


def test_after_the_end_next_is_at_the_end() -> None:
    source = Scripted(2)
    iterator = ResponseIterator(source)
    assert [next(iterator), next(iterator)] == source.responses
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(iterator)
    assert next(iterator, None) is None


def test_another_loop_begins_again() -> None:
    source = Scripted(3)
    iterator = ResponseIterator(source)
    for _ in range(3):
        assert list(iterator) == source.responses


def test_a_loop_that_was_left_is_resumed() -> None:
    source = Scripted(4)
    iterator = ResponseIterator(source)
    for response in iterator:
        assert response is source.responses[0]
        break
    assert next(iterator) is source.responses[1]
    assert list(iterator) == source.responses[2:]
    assert list(iterator) == source.responses


def test_a_replay_that_was_left_is_resumed_too() -> None:
    source = Scripted(3)
    iterator = ResponseIterator(source)
    assert list(iterator) == source.responses
    for response in iterator:
        assert response is source.responses[0]
        break
    assert list(iterator) == source.responses[1:]
    assert list(iterator) == source.responses


def test_the_end_of_a_replay_is_an_end() -> None:
    source = Scripted(1)
    iterator = ResponseIterator(source)
    assert list(iterator) == source.responses
    iter(iterator)
    assert next(iterator) is source.responses[0]
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_coroutine_waits_for_each() -> None:
    source = Scripted(3)

    async def collect() -> List[List[Any]]:
        iterator = ResponseIterator(source)
        assert iterator.__aiter__() is iterator
        first = [response async for response in iterator]
        waits = source.waits
        again = [response async for response in iterator]
        assert source.waits == waits, "a replay waits for nothing"
        with pytest.raises(StopAsyncIteration):
            await iterator.__anext__()
        return [first, again, list(iterator)]

    assert asyncio.run(collect()) == [source.responses] * 3


def test_a_coroutine_goes_on_where_a_loop_was_left() -> None:
    source = Scripted(4)

    async def collect() -> List[Any]:
        iterator = ResponseIterator(source)
        first = next(iterator)
        async for _ in iterator:
            break
        third = await iterator.__anext__()
        return [first, third, *iterator]

    assert asyncio.run(collect()) == [source.responses[0], *source.responses[2:]]


def test_other_coroutines_go_on_meanwhile() -> None:
    source, turns = Scripted(3), []

    async def collect() -> None:
        async for _ in ResponseIterator(source):
            turns.append("response")

    async def other() -> None:
        for _ in range(3):
            turns.append("other")
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(collect(), other())

    asyncio.run(both())
    assert turns[:4] == ["other", "response", "other", "response"]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_an_unfinished_one_is_abandoned_when_it_is_dropped(taken: int) -> None:
    source = Scripted(2)
    iterator = ResponseIterator(source)
    for _ in range(taken):
        next(iterator)
    del iterator
    gc.collect()
    assert source.abandoned == 1 and source.cancelled == 0


def test_a_finished_one_is_not() -> None:
    source = Scripted(2)
    list(ResponseIterator(source))
    gc.collect()
    assert source.abandoned == 0


def test_it_is_cancelled_until_its_end() -> None:
    """What comes all the same is still there to be taken."""
    source = Scripted(2)
    iterator = ResponseIterator(source)
    next(iterator)
    iterator.cancel()
    assert source.cancelled == 1
    assert list(iterator) == source.responses[1:]
    iterator.cancel()
    assert source.cancelled == 1
