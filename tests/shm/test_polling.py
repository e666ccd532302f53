"""How long to poll: pure arithmetic."""

from __future__ import annotations

import os
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.shm import polling
from stublet.shm.polling import PollBudget, poll_limit, yield_core

LIMIT = 200_000


def after(*waits: int, limit: int = LIMIT) -> int:
    budget = PollBudget(limit)
    for wait in waits:
        budget.waited(wait)
    return budget.nanoseconds(0)


@pytest.mark.parametrize(
    "waits, pays",
    [
        ([], True),  # the first record is expected soon
        ([0] * 100, True),
        ([LIMIT - 4] * 100, True),
        ([LIMIT + 1000] * 100, False),
        ([10**12] * 100, False),
        ([10**12] * 100 + [0] * 2, False),
        ([10**12] * 100 + [0] * 3, True),  # three short waits undo any number of long ones
        ([10_000] * 100 + [10**12], True),  # one long pause does not undo many short waits
    ],
)
def test_polls_as_long_as_it_pays(waits: List[int], pays: bool) -> None:
    assert after(*waits) == (LIMIT if pays else 0)


@given(st.lists(st.integers(0, 10**15)), st.integers(0, 10**9))
def test_never_polls_longer_than_the_limit(waits: List[int], limit: int) -> None:
    assert 0 <= after(*waits, limit=limit) <= limit


@given(st.lists(st.integers(0, 10**15)))
def test_no_limit_means_no_polling(waits: List[int]) -> None:
    assert after(*waits, limit=0) == 0


MS = 1_000_000


def rest(budget: PollBudget, now: int) -> int:
    """How many ms from a disturbance on it does not poll."""
    budget.disturbed(now)
    return next(ms for ms in range(10_000) if budget.nanoseconds(now + ms * MS))


def test_who_is_disturbed_sleeps_for_longer_and_longer() -> None:
    budget = PollBudget(LIMIT)
    now, found = 10**12, []
    for _ in range(8):
        found.append(rest(budget, now))
        now += found[-1] * MS
    assert found == [16, 32, 64, 128, 256, 512, 1024, 1024]


@pytest.mark.parametrize("undisturbed, then", [(31, 64), (32, 16)])
def test_as_long_without_as_it_rested_is_forgiveness(undisturbed: int, then: int) -> None:
    budget = PollBudget(LIMIT)
    assert [rest(budget, 10**12), rest(budget, 10**12 + 16 * MS)] == [16, 32]
    assert rest(budget, 10**12 + (16 + 32 + undisturbed) * MS) == then


def test_only_a_long_yield_is_a_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, polling.TAKEN_NS - 1, 0, polling.TAKEN_NS])
    monkeypatch.setattr(polling, "perf_counter_ns", lambda: next(times))
    assert yield_core()
    assert not yield_core()


@pytest.mark.parametrize("cores, limit", [({0}, 0), ({0, 1}, 50_000), ({3, 5, 7}, 50_000)])
def test_a_single_core_is_left_to_the_one_who_answers(monkeypatch: pytest.MonkeyPatch, cores: set[int], limit: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert poll_limit(50) == limit
