"""Nobody is left asleep, whoever comes and goes when."""

from __future__ import annotations

import random
import threading
from typing import Any, List, Optional, Set, Tuple

import pytest
from channel import open_channel
from desk import SECONDS, Desk, in_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule import Schedule
from stublet.shm.polling import PollBudget
from stublet.stub import inbox as inbox_module
from stublet.stub.inbox import Inbox, Waiter

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
