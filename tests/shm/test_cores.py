"""A thread that only looks around keeps out of the way."""

from __future__ import annotations

import os
import threading
from typing import Iterator

import pytest
from channel import open_channel
from stublet.shm.cores import current_core, step_aside

CORES = os.sched_getaffinity(0)


@pytest.fixture(autouse=True)
def same_cores() -> Iterator[None]:
    """The thread may run where it could, whatever the test did."""
    yield
    os.sched_setaffinity(0, CORES)


def test_a_thread_runs_on_one_of_its_cores() -> None:
    for core in CORES:
        os.sched_setaffinity(0, {core})
        assert current_core() == core


@pytest.mark.skipif(len(CORES) < 2, reason="there is no other core to go to")
def test_it_steps_aside_and_may_come_back() -> None:
    core = current_core()
    assert step_aside(core)
    assert os.sched_getaffinity(0) == CORES


def test_it_stays_where_it_has_nowhere_to_go() -> None:
    core = min(CORES)
    os.sched_setaffinity(0, {core})
    assert not step_aside(core)
    assert os.sched_getaffinity(0) == {core}


def test_other_threads_are_left_where_they_are() -> None:
    core = min(CORES)
    os.sched_setaffinity(0, {core})

    def other() -> None:
        os.sched_setaffinity(0, CORES)
        step_aside(current_core())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert os.sched_getaffinity(0) == {core}


def test_the_stub_knows_when_it_shares_the_core_of_the_server() -> None:
    with open_channel() as channel:
        assert not channel.words.shares_core()  # nobody has written yet
        os.sched_setaffinity(0, {min(CORES)})
        channel.words.note_core()
        assert channel.words.shares_core()
        if len(CORES) > 1:
            os.sched_setaffinity(0, {max(CORES)})
            assert not channel.words.shares_core()
