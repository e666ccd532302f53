"""The way of a request through an ensemble, told as events: what runs when, and what becomes of every tensor (spec 5.4)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stublet.parent.ensemble.flow import Actions, Course, Flow, Run, course_of


class Told:
    """A flow and all that it has said. Sources are text; ``held``: those that were not released."""

    def __init__(self, needs: Sequence[Sequence[int]], decoupled: Sequence[int] = (), limit: int = 0) -> None:
        self.course: Course = course_of(needs, [step in decoupled for step in range(len(needs) - 1)], limit)
        self.flow = Flow(self.course)
        self.started: List[Tuple[int, Tuple[Any, ...]]] = []
        self.runs: Dict[int, List[Run]] = {}
        self.answers: List[Tuple[Any, ...]] = []
        self.ends = 0
        self.cancelled: List[int] = []
        self.holding: List[Tuple[int, bool]] = []
        self.sources: List[str] = []
        self.released: List[Any] = []
        self.take(self.flow.begin(self.source("request")))

    def source(self, name: str) -> str:
        self.sources.append(name)
        return name

    def respond(self, step: int, name: Optional[str], final: bool = True, run: int = 0) -> None:
        """A run of the step, of those that are open, has answered."""
        which = self.runs[step].pop(run) if final else self.runs[step][run]
        self.take(self.flow.responded(which, None if name is None else self.source(name), final))

    def fail(self, step: int, final: bool = True) -> None:
        which = self.runs[step].pop(0) if final else self.runs[step][0]
        self.take(self.flow.failed(which, final))

    def take(self, actions: Actions) -> None:
        for run in actions.starts:
            self.started.append((run.step, run.sources))
            self.runs.setdefault(run.step, []).append(run)
        if actions.answer is not None:
            self.answers.append(actions.answer)
        self.ends += actions.end
        self.cancelled += [run.step for run in actions.cancels]
        self.holding += [(run.step, held) for run, held in actions.holds]
        self.released += actions.released

    @property
    def held(self) -> List[str]:
        assert len(set(self.released)) == len(self.released)
        return [source for source in self.sources if source not in self.released]


def test_a_chain() -> None:
    told = Told([(0,), (1,), (2,)])
    assert told.started == [(0, ("request",))] and told.held == []
    told.respond(0, "a")
    assert told.started[1:] == [(1, ("a",))]
    told.respond(1, "b")
    assert (told.answers, told.ends, told.held) == ([("b",)], 1, [])
    assert told.flow.over and not told.flow.open


def test_a_fork_that_joins() -> None:
    told = Told([(0,), (0,), (1, 2), (3,)])
    assert [step for step, _ in told.started] == [0, 1]
    told.respond(1, "right")
    assert len(told.started) == 2 and told.held == ["right"]
    told.respond(0, "left")
    assert told.started[2:] == [(2, ("left", "right"))]
    told.respond(2, "joined")
    assert told.answers == [("joined",)] and told.held == []


def test_an_output_may_come_from_the_middle_and_from_the_request() -> None:
    told = Told([(0,), (1,), (0, 1, 2)])
    told.respond(0, "a")
    assert told.held == ["request", "a"]
    told.respond(1, "b")
    assert told.answers == [("request", "a", "b")] and told.held == []


def test_a_step_that_leads_to_no_wanted_output_does_not_run() -> None:
    told = Told([(0,), (1,), (0,), (1,)])
    assert [step for step, _ in told.started] == [0]
    told.respond(0, "a")
    assert told.answers == [("a",)] and told.ends == 1 and len(told.started) == 1


def test_nothing_has_to_run() -> None:
    told = Told([(0,), (0,)])
    assert (told.answers, told.ends, told.started, told.held) == ([("request",)], 1, [], [])


def test_each_response_of_a_decoupled_step_goes_on_by_itself() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0])
    for name in "ab":
        told.respond(0, name, final=False)
    told.respond(1, "A")
    assert told.answers == [("A",)] and not told.ends
    told.respond(0, None)
    assert not told.ends
    told.respond(1, "B")
    assert told.answers == [("A",), ("B",)] and told.ends == 1 and told.held == []


def test_a_decoupled_step_that_says_nothing() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0])
    told.respond(0, None)
    assert (told.answers, told.ends, told.held) == ([], 1, [])


def test_what_belongs_to_one_response_stays_together() -> None:
    told = Told([(0,), (1,), (1,), (2, 3), (4,)], decoupled=[0])
    told.respond(0, "a", final=False)
    told.respond(0, "b", final=True)
    told.respond(1, "left b", run=1)
    told.respond(2, "right a")
    assert len(told.started) == 5  # neither response has both of its halves
    told.respond(2, "right b")
    assert told.started[5:] == [(3, ("left b", "right b"))]
    told.respond(1, "left a")
    assert told.started[6:] == [(3, ("left a", "right a"))]


def test_decoupled_steps_in_a_row() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0, 1])
    told.respond(0, "a", final=False)
    told.respond(0, "b")
    for name in ("a1", "a2"):
        told.respond(1, name, final=False)
    told.respond(1, None)
    told.respond(1, "b1")
    assert told.answers == [("a1",), ("a2",), ("b1",)] and told.ends == 1 and told.held == []


def test_a_limit_holds_up_what_feeds_the_step() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0], limit=1)
    told.respond(0, "a", final=False)
    assert told.holding == []
    told.respond(0, "b", final=False)
    assert told.holding == [(0, True)] and [step for step, _ in told.started] == [0, 1]
    told.respond(1, "A")
    assert told.holding == [(0, True), (0, False)] and told.started[2:] == [(1, ("b",))]
    told.respond(0, None)
    told.respond(1, "B")
    assert told.answers == [("A",), ("B",)] and told.ends == 1 and told.held == []


def test_a_limit_does_not_hold_up_the_step_that_waits() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0, 1], limit=1)
    told.respond(0, "a", final=False)
    told.respond(0, "b", final=False)
    assert told.holding == [(0, True)]  # and not step 1, which nobody could go on after


def test_whoever_asked_holds_all_that_send() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0, 1])
    told.take(told.flow.hold(True))
    assert told.holding == [(0, True)]
    told.respond(0, "a", final=False)
    assert told.holding == [(0, True), (1, True)]
    told.take(told.flow.hold(False))
    assert told.holding[2:] == [(0, False), (1, False)]


def test_a_failure_ends_everything() -> None:
    told = Told([(0,), (0,), (1, 2), (3,)])
    told.respond(1, "right")
    told.fail(0)
    assert told.flow.over and told.held == [] and not told.flow.open and not told.answers


def test_what_is_still_under_way_is_cancelled_and_dropped() -> None:
    told = Told([(0,), (0,), (1, 2), (3,)])
    told.fail(0)
    assert told.cancelled == [1] and told.flow.open
    told.respond(1, "late")
    assert told.held == [] and not told.flow.open and (told.answers, told.ends) == ([], 0)


def test_an_error_that_is_not_the_last_word() -> None:
    told = Told([(0,), (1,), (2,)], decoupled=[0])
    told.fail(0, final=False)
    assert told.cancelled == [0] and told.flow.open
    told.respond(0, "more", final=False)
    told.respond(0, None)
    assert told.held == [] and not told.flow.open and not told.answers


def test_what_has_not_begun() -> None:
    told = Told([(0,), (1,), (2,)])
    assert told.flow.to_come() == [1]
    told.respond(0, "a")
    assert told.flow.to_come() == []


@st.composite
def ensembles(draw: st.DrawFn) -> Tuple[List[List[int]], List[int], int]:
    """Steps in a row of layers, so that the inputs of each have the same decoupled origin."""
    needs: List[List[int]] = []
    decoupled: List[int] = []
    layer = [0]
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            needs.append(draw(st.lists(st.sampled_from(layer), min_size=1, max_size=2)))
            decoupled.append(len(needs) - 1)
            layer = [len(needs)]
        for _ in range(draw(st.integers(0, 3))):
            needs.append(draw(st.lists(st.sampled_from(layer), min_size=1, max_size=3)))
            layer = [*layer, len(needs)]
    needs.append(draw(st.lists(st.sampled_from(layer), min_size=1, max_size=3)))
    return needs, decoupled, draw(st.integers(0, 2))


@settings(max_examples=100, deadline=None)
@given(ensembles(), st.data())
def test_nothing_is_lost(ensemble: Tuple[List[List[int]], List[int], int], data: st.DataObject) -> None:
    needs, decoupled, limit = ensemble
    told = Told(needs, decoupled, limit)
    failed = False
    names = iter(range(10_000))
    while any(told.runs.values()):
        step = data.draw(st.sampled_from(sorted(step for step, runs in told.runs.items() if runs)))
        assert not limit or failed or len(told.runs[step]) <= limit
        what = data.draw(st.sampled_from(["respond"] * 8 + ["fail", "stop", "hold"]))
        if what == "fail":
            told.fail(step)
            failed = True
        elif what == "stop":
            told.take(told.flow.stop())
            failed = True
        elif what == "hold":
            told.take(told.flow.hold(data.draw(st.booleans())))
        elif step in decoupled:
            final = data.draw(st.booleans())
            told.respond(step, None if final and data.draw(st.booleans()) else str(next(names)), final)
        else:
            told.respond(step, str(next(names)))
    assert told.flow.over and not told.flow.open and told.held == []
    assert told.ends == 1 or (failed and told.ends == 0)
    if not decoupled and not failed:
        assert len(told.answers) == 1
    if not failed and not decoupled:
        assert sorted(step for step, _ in told.started) == [step for step, origins in enumerate(told.course.needs[:-1]) if origins]


@pytest.mark.parametrize("limit", [1, 2])
def test_every_response_is_answered_whatever_the_limit(limit: int) -> None:
    told = Told([(0,), (1,), (2,), (3,)], decoupled=[0], limit=limit)
    for name in "abcde":
        told.respond(0, name, final=False)
    told.respond(0, None)
    while told.runs.get(1) or told.runs.get(2):
        step = 2 if told.runs.get(2) else 1
        told.respond(step, f"{step}{len(told.sources)}")
    assert len(told.answers) == 5 and told.ends == 1 and told.held == []
