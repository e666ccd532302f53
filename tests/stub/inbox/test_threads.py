"""Whoever waits reads the ring, for everybody."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Callable, List, Optional

import pytest
from desk import SECONDS, Desk, waiting
from leaks import eventually
from stublet.shm.polling import PollBudget
from stublet.stub import inbox as inbox_module
from stublet.stub.inbox import Waiter

# ---- alone ----


def test_who_waits_reads_the_ring(desk: Desk) -> None:
    desk.waiters["b"] = Waiter()
    desk.say("b", "a")
    desk.waiters["a"] = Waiter()
    assert desk.wait("a")
    assert desk.read_by == dict.fromkeys("ab", threading.current_thread().name)
    assert desk.wait("b"), "it came before anybody waited for it"
    assert desk.slept == 0


def test_what_is_done_is_not_waited_for(desk: Desk) -> None:
    desk.waiters["a"] = Waiter()
    desk.inbox.finish(desk.waiters["a"])
    desk.say("b")
    assert desk.wait("a") and desk.wait("a", 0)
    assert not desk.read_by


def test_a_sleeper_is_woken_by_the_bell(desk: Desk) -> None:
    with waiting(desk, "a") as got:
        assert desk.slept == 1
        desk.say("a")
    assert got == {"a": True} and not desk.asleep()


@pytest.mark.parametrize("seconds", [0.0, 0.02])
@pytest.mark.parametrize("poll", [None, PollBudget(1_000_000)])
def test_a_wait_has_an_end(desk: Desk, seconds: float, poll: Optional[PollBudget]) -> None:
    desk.waiters["a"] = Waiter(poll)
    began = monotonic()
    assert not desk.wait("a", seconds)
    assert seconds <= monotonic() - began < SECONDS
    desk.say("a")
    assert desk.wait("a"), "it can be waited for again"


def test_before_it_sleeps_there_may_be_something_to_say(desk: Desk) -> None:
    """Such as the release of a block, to which the server may answer at once."""

    def answer() -> None:
        desk.say("a")

    desk.inbox._before_sleep = answer
    assert desk.wait("a")


def test_a_short_wait_is_polled(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = PollBudget(10_000_000_000)
    desk.waiters["a"] = Waiter(budget)
    looks: List[int] = []

    def pause() -> None:
        looks.append(1)
        if len(looks) == 3:
            desk.say("a")

    monkeypatch.setattr(inbox_module.os, "sched_yield", pause)
    monkeypatch.setattr(inbox_module.threading, "active_count", lambda: 2)
    assert desk.wait("a")
    assert len(looks) == 3 and desk.slept == 0


@pytest.mark.parametrize("threads, nanoseconds", [(3, 10_000_000_000), (2, 0)])
def test_it_sleeps_at_once_where_polling_does_not_pay(desk: Desk, monkeypatch: pytest.MonkeyPatch, threads: int, nanoseconds: int) -> None:
    """With a third thread it would take the interpreter from it."""
    monkeypatch.setattr(inbox_module.threading, "active_count", lambda: threads)
    desk.waiters["a"] = Waiter(PollBudget(nanoseconds))
    desk.inbox._before_sleep = lambda: desk.say("a")
    assert desk.wait("a")


def test_who_polls_is_finished_by_another_thread(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.waiters["a"] = Waiter(PollBudget(10_000_000_000))
    monkeypatch.setattr(inbox_module.threading, "active_count", lambda: 2)
    monkeypatch.setattr(inbox_module.os, "sched_yield", lambda: desk.inbox.finish(desk.waiters["a"]))
    assert desk.wait("a") and desk.slept == 0


def test_a_waiter_can_be_used_again(desk: Desk) -> None:
    for _ in range(3):
        desk.say("a")
        assert desk.wait("a")
        desk.waiters["a"].done = False
    assert not desk.wait("a", 0.01)


# ---- one leads, the others follow ----


def test_the_leader_passes_on_what_is_for_others(desk: Desk) -> None:
    with waiting(desk, "a", "b", "c") as got:
        desk.say("c")
        assert eventually(lambda: got == {"c": True}), "the leader has nothing yet, and still passes on"
        desk.say("b", "a")
    assert got == dict.fromkeys("abc", True)
    assert desk.read_by == dict.fromkeys("abc", "a")


def test_when_the_leader_leaves_the_next_one_leads(desk: Desk) -> None:
    with waiting(desk, "a", "b", "c") as got:
        for name in "abc":
            desk.say(name)
            assert eventually(lambda name=name: name in got)
            assert name == "c" or eventually(desk.asleep)
    assert desk.read_by == {"a": "a", "b": "b", "c": "c"}


def test_the_next_one_may_have_what_it_waits_for(desk: Desk) -> None:
    """It need not lead, but another has to."""
    with waiting(desk, "a", "b", "c") as got:
        desk.say("b", "a")
        assert eventually(lambda: len(got) == 2)
        desk.say("c")
    assert got == dict.fromkeys("abc", True)


@pytest.mark.parametrize("which", ["a", "b"])
def test_another_thread_may_finish_the_leader_or_a_follower(desk: Desk, which: str) -> None:
    with waiting(desk, "a", "b") as got:
        desk.inbox.finish(desk.waiters[which])
        assert eventually(lambda: got == {which: True})
        (other,) = {"a", "b"} - {which}
        desk.say(other)
    assert got == {"a": True, "b": True} and desk.read_by == {other: other}


@pytest.mark.parametrize("first", [0.0, 0.05])
def test_a_follower_whose_time_is_over_leaves(desk: Desk, first: float) -> None:
    with waiting(desk, "a"):
        assert not desk.wait("b", first)
        assert desk.followers() == 0
        desk.say("a")


def test_a_leader_whose_time_is_over_is_followed(desk: Desk) -> None:
    def lead() -> None:
        assert not desk.wait("a", 0.1)

    leader = threading.Thread(target=lead)
    leader.start()
    assert eventually(desk.asleep)
    follower = threading.Thread(target=lambda: desk.wait("b"))
    follower.start()
    leader.join(SECONDS)
    assert eventually(desk.asleep), "the follower leads"
    desk.say("b")
    follower.join(SECONDS)
    assert not follower.is_alive()


class LateFollowers(inbox_module.Deque):  # type: ignore[type-arg]
    """What happens just before a follower that is awake takes itself from the list."""

    def __init__(self, meanwhile: Callable[[Waiter], None]) -> None:
        super().__init__()
        self.meanwhile: Optional[Callable[[Waiter], None]] = meanwhile

    def remove(self, waiter: Waiter) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile(waiter)
        super().remove(waiter)


def test_who_is_to_lead_but_has_no_time_left_hands_it_on(desk: Desk) -> None:
    """Its time is over, and before it has left, the leader leaves and chooses it."""
    with waiting(desk, "a", "b") as got:
        asleep = desk.inbox._followers.pop()

        def leader_leaves(_: Waiter) -> None:
            desk.say("a")
            assert eventually(lambda: "a" in got)

        followers = desk.inbox._followers = LateFollowers(leader_leaves)
        desk.waiters["c"] = Waiter()
        append = followers.append

        def ahead_of_the_sleeper(waiter: Waiter) -> None:
            append(waiter)
            if waiter is desk.waiters["c"]:
                append(asleep)

        followers.append = ahead_of_the_sleeper  # type: ignore[method-assign]
        assert not desk.wait("c", 0.01)
        desk.say("b")


# ---- looking without waiting ----


def test_a_look_takes_what_is_there(desk: Desk) -> None:
    desk.waiters.update(a=Waiter(), b=Waiter())
    desk.say("a", "b")
    desk.inbox.look()
    assert desk.waiters["a"].done and desk.waiters["b"].done
    desk.inbox.look()


def test_a_look_leaves_it_to_the_leader(desk: Desk) -> None:
    with waiting(desk, "a"):
        desk.inbox.look()
        assert not desk.read_by
        desk.say("a")


def test_who_comes_during_a_look_leads_afterwards(desk: Desk) -> None:
    desk.waiters["a"] = Waiter()
    follower = threading.Thread(target=lambda: desk.wait("b"), name="b")

    def route(record: bytes) -> None:
        if record == b"a":
            follower.start()
            assert eventually(lambda: desk.followers() == 1)
        Desk.route(desk, record)

    desk.inbox._route = route
    desk.say("a")
    desk.inbox.look()
    assert eventually(desk.asleep)
    desk.say("b")
    follower.join(SECONDS)
    assert not follower.is_alive() and desk.read_by["b"] == "b"
