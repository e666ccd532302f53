"""An inbox for tests, and threads that wait at it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from time import monotonic
from typing import Any, Callable, Dict, Iterator, List, Optional

from channel import Channel
from leaks import eventually
from stublet.stub.inbox import Inbox, Waiter

SECONDS = 30.0
"""Longer than anything here takes."""


class Desk:
    """An inbox whose records are the names of those who wait for them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.waiters: Dict[str, Waiter] = {}
        self.read_by: Dict[str, str] = {}
        """Which thread took a record."""
        self.slept = 0
        self.inbox = Inbox(channel.consumers["down"], channel.bells["down"], self.route, self.before_sleep, channel.words.shares_core)

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
