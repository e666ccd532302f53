"""While coroutines wait, a thread reads the ring for them."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from typing import Any, Iterator

import pytest
from desk import SECONDS, Desk, in_threads, waiting
from leaks import eventually
from stublet.stub.inbox import Waiter


@pytest.fixture
def for_coroutines(desk: Desk) -> Iterator[Desk]:
    """The thread that waits for coroutines stays for the life of the process. Here it ends with the test."""
    run = desk.inbox._coroutines._run

    def until_the_end() -> None:
        with suppress(SystemExit):
            run()

    desk.inbox._coroutines._run = until_the_end  # type: ignore[method-assign]
    yield desk

    def end(*_: Any) -> None:
        raise SystemExit

    desk.inbox.wait = end  # type: ignore[method-assign]
    desk.inbox._coroutines._needed.release()
    for thread in threading.enumerate():
        if thread.name == "stublet-replies":
            thread.join(SECONDS)


def replies_thread() -> bool:
    return any(thread.name == "stublet-replies" for thread in threading.enumerate())


def test_while_coroutines_wait_a_thread_of_its_own_leads(for_coroutines: Desk) -> None:
    desk = for_coroutines
    assert not replies_thread(), "it is started when it is first needed"
    for round_ in range(3):
        name = f"coroutine {round_}"
        desk.waiters[name] = Waiter()
        desk.inbox.expect()
        assert eventually(desk.asleep)
        desk.inbox.expect()
        desk.say(name)
        assert eventually(lambda name=name: desk.waiters[name].done)
        assert desk.read_by[name] == "stublet-replies"
        desk.inbox.got()
        assert desk.inbox._lead.locked(), "one still waits"
        desk.inbox.got()
        assert eventually(lambda: not desk.inbox._lead.locked()), "nobody does"
        desk.say(name)
        assert desk.wait("main", 0.01) is False and desk.read_by[name] == "MainThread"
    assert sum(thread.name == "stublet-replies" for thread in threading.enumerate()) == 1


def test_a_thread_that_waits_serves_coroutines_too(for_coroutines: Desk) -> None:
    desk = for_coroutines
    with waiting(desk, "a"):
        desk.waiters["coroutine"] = Waiter()
        desk.inbox.expect()
        assert eventually(lambda: desk.followers() == 1)
        desk.say("coroutine")
        assert eventually(lambda: desk.waiters["coroutine"].done)
        assert desk.read_by["coroutine"] == "a"
        desk.inbox.got()
        assert eventually(lambda: desk.followers() == 0)
        desk.say("a")


def test_the_end_of_a_thread_that_waited_is_no_end_for_coroutines(for_coroutines: Desk) -> None:
    desk = for_coroutines
    with waiting(desk, "a"):
        desk.inbox.expect()
        assert eventually(lambda: desk.followers() == 1)
        desk.say("a")
    desk.waiters["coroutine"] = Waiter()
    desk.say("coroutine")
    assert eventually(lambda: desk.read_by.get("coroutine") == "stublet-replies")
    desk.inbox.got()


def test_coroutines_come_and_go(for_coroutines: Desk) -> None:
    desk = for_coroutines

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            count = chance.randint(1, 3)
            for _ in range(count):
                desk.inbox.expect()
            for _ in range(count):
                desk.inbox.got()

    in_threads(work, range(8))
    assert desk.inbox._coroutines._count == 0
    assert eventually(lambda: not desk.inbox._lead.locked())
    desk.say("a")
    assert desk.wait("a")
