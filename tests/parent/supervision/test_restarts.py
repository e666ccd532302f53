"""When an instance that has died is started again: events, and a clock that is only a number."""

from __future__ import annotations

from typing import List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stublet.parent.supervision.restarts import (
    FIRST_DELAY_SECONDS,
    MOST_SECONDS,
    SOON_SECONDS,
    STEADY_SECONDS,
    Phase,
    RestartPolicy,
    Restarts,
)

FOR_EVER = RestartPolicy(1_000_000, 1.0)


def crashes(restarts: Restarts, times: int) -> List[Optional[float]]:
    """The delays when each one that is started dies as soon as it serves."""
    delays = []
    now = 0.0
    for _ in range(times):
        delay = restarts.died(now)
        delays.append(delay)
        if delay is not None:
            now += delay
            restarts.begun()
            restarts.served(now)
    return delays


def test_the_first_restart_is_immediate_and_the_others_wait_for_longer_and_longer() -> None:
    longest = crashes(Restarts(FOR_EVER, 0.0, lambda: 1.0), 12)
    assert longest == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    shortest = crashes(Restarts(FOR_EVER, 0.0, lambda: 0.0), 12)
    assert shortest == [0.0, *(delay / 2 for delay in longest[1:] if delay is not None)]


def test_no_restart_ever_waits_for_longer_than_the_most() -> None:
    assert max(delay for delay in crashes(Restarts(FOR_EVER, 0.0), 2000) if delay is not None) <= MOST_SECONDS


def test_one_that_served_for_a_while_is_as_good_as_new() -> None:
    restarts = Restarts(FOR_EVER, 0.0)
    crashes(restarts, 5)
    restarts.served(100.0)
    assert restarts.died(100.0 + STEADY_SECONDS) == 0.0


def test_one_that_loads_for_long_and_fails_has_not_served() -> None:
    restarts = Restarts(FOR_EVER, 0.0)
    assert restarts.died(STEADY_SECONDS) == 0.0
    restarts.begun()
    delay = restarts.died(STEADY_SECONDS + 1000.0)
    assert delay is not None and delay >= FIRST_DELAY_SECONDS / 2


def test_the_budget() -> None:
    restarts = Restarts(RestartPolicy(3, 300.0), 0.0)
    assert [delay is None for delay in crashes(restarts, 4)] == [False, False, False, True]
    assert restarts.phase is Phase.GIVEN_UP and restarts.count == 3 and not restarts.hopeful


def test_what_was_long_ago_does_not_count() -> None:
    restarts = Restarts(RestartPolicy(1, 60.0), 0.0)
    for hour in range(5):
        assert restarts.died(hour * 3600.0) == 0.0
        restarts.begun()
        restarts.served(hour * 3600.0)
    assert restarts.died(4 * 3600.0 + 59.0) is None


def test_no_budget_no_restart() -> None:
    assert Restarts(RestartPolicy(0, 60.0), 0.0).died(1000.0) is None


def test_what_is_worth_waiting_for() -> None:
    restarts = Restarts(FOR_EVER, 0.0)
    restarts.died(0.0)
    assert restarts.hopeful
    restarts.begun()
    assert restarts.hopeful
    restarts.failed()
    assert not restarts.hopeful
    restarts.died(0.1)
    assert not restarts.hopeful and restarts.phase is Phase.WAITING
    restarts.begun()
    assert not restarts.hopeful
    restarts.served(0.2)
    restarts.died(0.2)
    assert restarts.hopeful  # it is due within a second, and the last one did load
    for _ in range(10):
        restarts.begun()
        restarts.served(0.3)
        restarts.died(0.3)
    assert not restarts.hopeful


class Lives(RuleBasedStateMachine):
    """Any life of a place, with the clock going on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.policy = RestartPolicy(4, 100.0)
        self.restarts = Restarts(self.policy, 0.0)
        self.times: List[float] = []

    @rule(seconds=st.floats(0.0, 200.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.restarts.phase in (Phase.SERVING, Phase.LOADING))
    @rule()
    def die(self) -> None:
        served = self.restarts.phase is Phase.SERVING
        delay = self.restarts.died(self.now)
        counted = [time for time in self.times if time > self.now - self.policy.window_seconds]
        assert (delay is None) == (len(counted) >= self.policy.limit)
        if delay is None:
            return
        self.times.append(self.now)
        assert 0.0 <= delay <= MOST_SECONDS
        assert self.restarts.due == self.now + delay
        assert self.restarts.hopeful == (served and delay <= SOON_SECONDS)

    @precondition(lambda self: self.restarts.phase is Phase.WAITING)
    @rule()
    def start(self) -> None:
        self.now = max(self.now, self.restarts.due)
        self.restarts.begun()

    @precondition(lambda self: self.restarts.phase is Phase.LOADING)
    @rule()
    def serve(self) -> None:
        self.restarts.served(self.now)

    @invariant()
    def counts(self) -> None:
        assert self.restarts.recent <= self.policy.limit
        assert self.restarts.count <= len(self.times)
        assert not (self.restarts.hopeful and self.restarts.phase in (Phase.SERVING, Phase.GIVEN_UP))


TestLives = Lives.TestCase


@given(chances=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=20, max_size=20))
def test_jitter_takes_half_of_a_delay_at_most(chances: List[float]) -> None:
    left = iter(chances)
    delays = crashes(Restarts(FOR_EVER, 0.0, lambda: next(left)), 12)
    for step, delay in enumerate(delays[1:]):
        assert delay is not None
        longest = min(FIRST_DELAY_SECONDS * 2**step, MOST_SECONDS)
        assert longest / 2 <= delay <= longest


@pytest.mark.parametrize("limit", range(6))
def test_as_many_restarts_as_the_budget_has(limit: int) -> None:
    assert sum(delay is not None for delay in crashes(Restarts(RestartPolicy(limit, 1e9), 0.0), 20)) == limit
