"""The inbox: whoever waits reads the ring, for everybody; nobody is left asleep, whoever comes and goes when."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest
from channel import Channel, open_channel
from hypothesis import given, settings
from hypothesis import strategies as st
from leaks import eventually
from schedule import Schedule
from stublet.shm.polling import PollBudget
from stublet.stub import inbox as inbox_module
from stublet.stub.inbox import Inbox, Waiter

SECONDS = 30.0
"""Longer than anything here takes."""


@pytest.fixture(autouse=True)
def no_belt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleeper looks again after a second. Here it does not, so that whoever is not woken is not excused."""
    monkeypatch.setattr(inbox_module, "_SLEEP_SECONDS", 1e5)


class Desk:
    """An inbox whose records are the names of those who wait for them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.waiters: Dict[str, Waiter] = {}
        self.read_by: Dict[str, str] = {}
        """Which thread took a record."""
        self.slept = 0
        self.inbox = Inbox(channel.consumers["down"], channel.bells["down"], self.route, self.before_sleep)

    def route(self, record: bytes) -> None:
        name = record.decode()
        self.read_by[name] = threading.current_thread().name
        self.inbox.routed(self.waiters[name])

    def before_sleep(self) -> None:
        self.slept += 1

    def say(self, *names: str) -> None:
        """The server's end."""
        for name in names:
            assert self.channel.producers["down"].push(name.encode())
        self.channel.producers["down"].ring()

    def wait(self, name: str, seconds: Optional[float] = SECONDS) -> bool:
        return self.inbox.wait(self.waiters.setdefault(name, Waiter()), seconds)

    def asleep(self) -> bool:
        """Whether a thread that leads sleeps."""
        return self.inbox._lead.locked() and self.channel.consumers["down"]._words[self.channel.consumers["down"]._asleep] == 1

    def followers(self) -> int:
        return len(self.inbox._followers)


@contextmanager
def waiting(desk: Desk, *names: str) -> Iterator[Dict[str, bool]]:
    """A thread for each waiter, named like it; the first leads and sleeps, the others follow. What they got is there at the end."""
    got: Dict[str, bool] = {}

    def wait(name: str) -> None:
        got[name] = desk.wait(name, None)

    threads = [threading.Thread(target=wait, args=(name,), name=name, daemon=True) for name in names]
    try:
        for number, thread in enumerate(threads):
            thread.start()
            assert eventually(desk.asleep) and eventually(lambda number=number: desk.followers() == number)
        yield got
        assert eventually(lambda: not any(thread.is_alive() for thread in threads)), f"of {names} only {list(got)} woke up"
    finally:
        for name in names:
            desk.inbox.finish(desk.waiters[name])
        for thread in threads:
            thread.join(SECONDS)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with open_channel() as channel:
        yield Desk(channel)


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


# ---- coroutines ----


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


# ---- stress ----


def in_threads(work: Callable[[Any], Any], arguments: Any, seconds: float = 90.0) -> None:
    """Runs it in a thread for each argument.

    Raises:
        AssertionError: one of them did not end in time.
    """
    errors: List[BaseException] = []

    def run(argument: Any) -> None:
        try:
            work(argument)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(argument,), daemon=True) for argument in arguments]
    deadline = monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - monotonic(), 0))
    stuck = [thread for thread in threads if thread.is_alive()]
    if errors:
        raise errors[0]
    assert not stuck, f"{len(stuck)} threads are left asleep"


THREADS, ROUNDS = 32, 60


def test_thirty_two_threads_each_get_their_own(desk: Desk) -> None:
    """Some answers come through the ring, some from another thread; some are not waited for to the end."""
    asked: List[str] = []
    wanted = threading.Semaphore(0)
    late: Set[str] = set()

    def server(_: int) -> None:
        chance = random.Random(0)
        for _ in range(THREADS * ROUNDS):
            assert wanted.acquire(timeout=SECONDS)
            name = asked.pop(chance.randrange(len(asked)))
            if chance.random() < 0.3:
                desk.inbox.finish(desk.waiters[name])
                continue
            while not desk.channel.producers["down"].push(name.encode()):
                desk.channel.producers["down"].ring()
            desk.channel.producers["down"].ring()

    def work(number: int) -> None:
        if number < 0:
            return server(number)
        chance = random.Random(number)
        for round_ in range(ROUNDS):
            name = f"{number} {round_}"
            desk.waiters[name] = Waiter(PollBudget(50_000) if chance.random() < 0.5 else None)
            asked.append(name)
            wanted.release()
            if chance.random() < 0.2 and not desk.wait(name, chance.random() / 1000):
                late.add(name)
            assert desk.wait(name)
            if chance.random() < 0.1:
                desk.inbox.look()
        return None

    in_threads(work, range(-1, THREADS))
    assert all(waiter.done for waiter in desk.waiters.values())
    assert len(desk.waiters) == THREADS * ROUNDS and not desk.followers() and not desk.inbox._lead.locked()


class ScheduledWaiter(Waiter):
    """One that sleeps in a schedule."""

    __slots__ = ("schedule",)

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def sleep(self, seconds: float) -> None:
        self.schedule.wait(lambda: not self._asleep.locked(), seconds)
        self._asleep.acquire(False)


class ScheduledBell:
    """A bell that is waited for in a schedule."""

    def __init__(self, schedule: Schedule, readable: Any) -> None:
        self._schedule = schedule
        self._readable = readable

    def poll(self, milliseconds: float) -> None:
        self._schedule.wait(lambda: bool(self._readable.poll(0)), milliseconds / 1000)


HOW = st.sampled_from(["ring", "finish", "both"])


@settings(max_examples=400)
@given(
    seed=st.integers(0, 2**32), waiters=st.lists(st.tuples(HOW, st.none() | st.integers(0, 3)), min_size=1, max_size=5), looks=st.booleans()
)
def test_whatever_the_order_of_their_steps_nobody_is_left_asleep(seed: int, waiters: List[Tuple[str, Optional[int]]], looks: bool) -> None:
    """Each waiter is told through the ring, by another thread, or both; some have only so much time."""
    with open_channel() as channel, pytest.MonkeyPatch.context() as patched:
        schedule = Schedule(seed, Inbox.wait, Inbox.finish, Inbox.routed, Inbox.look, Inbox._hand_on, Inbox._read_until)
        patched.setattr(inbox_module, "monotonic", lambda: schedule.now)
        desk = Desk(channel)
        desk.inbox._readable = ScheduledBell(schedule, desk.inbox._readable)  # type: ignore[assignment]
        for number in range(len(waiters)):
            desk.waiters[str(number)] = ScheduledWaiter(schedule)

        def wait(name: str, seconds: Optional[int]) -> None:
            assert desk.inbox.wait(desk.waiters[name], seconds) == desk.waiters[name].done or seconds is not None

        def server() -> None:
            for number, (how, _) in enumerate(waiters):
                if how != "finish":
                    schedule.linger()
                    desk.say(str(number))

        def another() -> None:
            for number, (how, _) in enumerate(waiters):
                if how != "ring":
                    schedule.linger()
                    desk.inbox.finish(desk.waiters[str(number)])

        for number, (_, seconds) in enumerate(waiters):
            schedule.add(f"waiter {number}", lambda name=str(number), seconds=seconds: wait(name, seconds))
        schedule.add("server", server)
        schedule.add("another thread", another)
        if looks:
            schedule.add("look", desk.inbox.look)
        schedule.run()
        assert not desk.followers() and not desk.inbox._lead.locked()
