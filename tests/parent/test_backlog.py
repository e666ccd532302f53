"""When a model is held up for its client, and when it goes on: events in, what the model is told out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.backlog import MOST_BYTES, MOST_RESPONSES, PATIENCE_SECONDS, Backlog
from stublet.parent.errors import Unavailable
from stublet.parent.request import OutputPlan, Response


class Told:
    """What a model is told, and a clock for what it is to be told later."""

    def __init__(self) -> None:
        self.held: List[bool] = []
        self.later: List[Tuple[Any, ...]] = []

    def hold(self, request: Any, held: bool) -> None:
        assert request == "request"
        self.held.append(held)

    def call_later(self, seconds: float, *what: Any) -> None:
        assert seconds == PATIENCE_SECONDS
        self.later.append(what)

    def pass_time(self) -> None:
        due, self.later = self.later, []
        for function, *arguments in due:
            function(*arguments)


def backlog_of(told: Told, give_up: Any = None) -> Backlog:
    backlog = Backlog(told, give_up)  # type: ignore[arg-type]
    backlog.attach("request")  # type: ignore[arg-type]
    return backlog


def response(nbytes: int) -> Response:
    plan = SimpleNamespace(nbytes=nbytes)
    return Response(plan, [], [], "")  # type: ignore[arg-type]


@pytest.mark.parametrize("nbytes, most", [(0, MOST_RESPONSES), (MOST_BYTES // 8, 8), (10 * MOST_BYTES, 2)])
def test_held_from_too_many_on_until_half_of_them_are_gone(nbytes: int, most: int) -> None:
    told = Told()
    backlog = backlog_of(told)
    one: Optional[Response] = response(nbytes) if nbytes else None
    for count in range(1, most + 5):
        backlog.put(one)
        assert told.held == ([True] if count >= most else [])
    left = most + 4
    while told.held == [True]:
        backlog.took(one)
        left -= 1
    assert told.held == [True, False]
    assert left == (most // 2 if nbytes <= MOST_BYTES else 0)


def test_one_response_of_any_size_does_not_hold() -> None:
    told = Told()
    backlog = backlog_of(told)
    for _ in range(3):
        backlog.put(response(100 * MOST_BYTES))
        backlog.took(response(100 * MOST_BYTES))
    assert told.held == []


def test_a_client_that_takes_nothing_is_given_up() -> None:
    told, given_up = Told(), []
    backlog = backlog_of(told, given_up.append)
    for _ in range(MOST_RESPONSES):
        backlog.put(None)
    backlog.took(None)
    told.pass_time()
    assert given_up == [], "it took one"
    told.pass_time()
    ((error,),) = [given_up]
    assert isinstance(error, Unavailable)
    assert str(error) == f"{MOST_RESPONSES - 1} responses of 0 bytes waited for 60 s for a client that took none"
    assert told.later == []


def test_a_client_that_caught_up_is_not() -> None:
    told, given_up = Told(), []
    backlog = backlog_of(told, given_up.append)
    for _ in range(MOST_RESPONSES):
        backlog.put(None)
    for _ in range(MOST_RESPONSES):
        backlog.took(None)
    told.pass_time()
    assert given_up == [] and told.later == []


def test_without_a_give_up_it_takes_its_time() -> None:
    told = Told()
    backlog = backlog_of(told)
    for _ in range(MOST_RESPONSES):
        backlog.put(None)
    assert told.later == []
    backlog.close()
    backlog.close()
    assert told.held == [True, False], "nobody is held up for nobody"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, MOST_BYTES)), max_size=200))
def test_it_ends_as_it_should_be(steps: List[Tuple[bool, int]]) -> None:
    told = Told()
    backlog = backlog_of(told)
    waiting: List[Response] = []
    for put, nbytes in steps:
        if put:
            waiting.append(response(nbytes))
            backlog.put(waiting[-1])
        elif waiting:
            backlog.took(waiting.pop(0))
        held = bool(told.held) and told.held[-1]
        nbytes = sum(one.plan.nbytes for one in waiting)
        if nbytes >= MOST_BYTES and len(waiting) > 1:
            assert held
        if not waiting:
            assert not held
    assert told.held == [index % 2 == 0 for index in range(len(told.held))], "on and off in turn"


def test_sizes_are_those_of_plans() -> None:
    """What the tests above stand in for."""
    assert Response(OutputPlan([], [], 0), [], [], "").plan.nbytes == 0
