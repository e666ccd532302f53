"""Which calls can never be served: who waits for whom, told as a picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.bls import OpenCall, cycle_of
from stublet.parent.lifecycle import State
from stublet.parent.model import Model


class FakeInstance:
    """What the search looks at. ``executing``: the instance is within ``execute``."""

    def __init__(self, name: str, executing: bool = True, state: State = State.READY) -> None:
        self.name = name
        self.state = state
        self.spec = SimpleNamespace(passive=False)
        self.open_calls: Dict[int, OpenCall] = {}
        self.channel = SimpleNamespace(executing=lambda: executing)

    def calls(self, callee: FakeModel, handed_to: Optional[FakeInstance] = None, blocking: bool = True, **request: bool) -> None:
        """It waits for an answer of that model; ``handed_to``: who of it serves the call."""
        wanted: Any = SimpleNamespace(**{"answered": False, "returned": False, "instance": handed_to, **request})
        self.open_calls[len(self.open_calls)] = OpenCall(callee, wanted, blocking)  # type: ignore[arg-type]


class FakeModel:
    def __init__(self, *instances: FakeInstance) -> None:
        self.instances = list(instances)
        self._expected = False

    servers = Model.servers


class FakeEnsemble(FakeModel):
    """Each of these has to execute something for a request."""

    def servers(self, request: Any) -> List[List[Any]]:  # type: ignore[override]
        return [[instance] for instance in self.instances]


def cycle(instance: FakeInstance, every_call: bool = False) -> List[str]:
    """That of its last call. ``every_call``: that call is one of which nobody knows whether ``execute`` waits for it."""
    *_, call = instance.open_calls.values()
    return cycle_of(instance, call._replace(blocking=not every_call))  # type: ignore[arg-type]


a, b, c = "a", "b", "c"


def test_an_ensemble_needs_all_of_its_steps() -> None:
    caller, first, last = FakeInstance(a), FakeInstance(b), FakeInstance(c)
    caller.calls(FakeEnsemble(first, last))
    assert cycle(caller) == []
    last.calls(FakeModel(caller))
    assert cycle(caller) == [a, c, a]


def test_who_calls_itself_waits_for_ever() -> None:
    one = FakeInstance(a)
    one.calls(FakeModel(one))
    assert cycle(one) == [a, a]


def test_two_that_call_each_other() -> None:
    one, two = FakeInstance(a), FakeInstance(b)
    one.calls(FakeModel(two), handed_to=two)
    assert cycle(one) == [], "the other one is at work"
    two.calls(FakeModel(one))
    assert cycle(two) == [b, a, b]
    assert cycle(one) == [a, b, a]


def test_three_in_a_circle() -> None:
    one, two, three = FakeInstance(a), FakeInstance(b), FakeInstance(c)
    one.calls(FakeModel(two), handed_to=two)
    two.calls(FakeModel(three), handed_to=three)
    assert cycle(two) == cycle(one) == []
    three.calls(FakeModel(one))
    assert cycle(three) == [c, a, b, c]


def test_a_chain_that_leads_into_a_circle() -> None:
    """Who waits for those that wait for each other waits for ever, too; the way there is named."""
    outside, one = FakeInstance(a), FakeInstance(b)
    one.calls(FakeModel(one))
    outside.calls(FakeModel(one))
    assert cycle(outside) == [a, b, b]


@pytest.mark.parametrize("second_executes", [False, True])
def test_a_second_instance_serves_it(second_executes: bool) -> None:
    """A free one at once, one at work later."""
    one, two = FakeInstance(a), FakeInstance(b, executing=second_executes)
    one.calls(FakeModel(one, two))
    assert cycle(one) == []


def test_a_second_instance_that_waits_for_the_same_does_not() -> None:
    one, two = FakeInstance(a), FakeInstance(b)
    model = FakeModel(one, two)
    one.calls(model)
    assert cycle(one) == []
    two.calls(model)
    assert cycle(two) == [b, a, b] and cycle(one) == [a, b, a]


@pytest.mark.parametrize("state", [State.STARTING, State.LOADING, State.STOPPING, State.FAILED, State.STOPPED])
def test_a_second_instance_that_does_not_serve_is_none(state: State) -> None:
    one, two = FakeInstance(a), FakeInstance(b, executing=False, state=state)
    one.calls(FakeModel(one, two))
    assert cycle(one) == [a, a]


def test_who_it_was_handed_to_is_who_counts() -> None:
    """A request that is in an instance's ring stays there, though another one is free."""
    one, two = FakeInstance(a), FakeInstance(b, executing=False)
    one.calls(FakeModel(one, two), handed_to=one)
    assert cycle(one) == [a, a]


def test_a_decoupled_model_that_returned_takes_the_next_request() -> None:
    """Its ``execute`` is over, so that it waits for nothing, whatever its threads wait for."""
    one = FakeInstance(a, executing=False)
    one.calls(FakeModel(one))
    assert cycle(one) == [] == cycle(one, every_call=True)


@pytest.mark.parametrize("over", ["answered", "returned"])
def test_a_call_that_is_being_answered_ends(over: str) -> None:
    one, two = FakeInstance(a), FakeInstance(b)
    two.calls(FakeModel(one))
    one.calls(FakeModel(two), handed_to=two, **{over: True})
    assert cycle(one) == []


def test_a_call_of_another_thread_does_not_keep_execute_from_returning() -> None:
    one, two = FakeInstance(a), FakeInstance(b)
    one.calls(FakeModel(two), handed_to=two)
    two.calls(FakeModel(one), blocking=False)
    assert cycle(one) == []
    assert cycle(one, every_call=True) == [a, b, a], "unless it does"


def test_of_several_calls_at_once_each_is_looked_at_by_itself() -> None:
    """One that is served does not help another that never will be."""
    one, two = FakeInstance(a), FakeInstance(b)
    one.calls(FakeModel(two), handed_to=two, blocking=False)
    one.calls(FakeModel(one), blocking=False)
    assert cycle(one, every_call=True) == [a, a]


def test_a_call_to_nobody_is_not_served() -> None:
    one = FakeInstance(a)
    one.calls(FakeModel())
    assert cycle(one) == [a, a]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12), st.sets(st.integers(0, 5)), st.data())
def test_against_a_plain_search(edges: List[Any], executing: Any, data: st.DataObject) -> None:
    """Instances with a model each: one goes on if it does not execute, or if all whom it calls do."""
    instances = [FakeInstance(str(number), executing=number in executing) for number in range(6)]
    for caller, callee in edges:
        instances[caller].calls(FakeModel(instances[callee]))
    number, callee = data.draw(st.sampled_from(edges))
    instances[number].calls(FakeModel(instances[callee]))
    free = set(range(6)) - {number} - {caller for caller, _ in edges} | (set(range(6)) - executing)
    for _ in range(6):
        free |= {caller for caller, _ in edges if caller != number and all(to in free for by, to in edges if by == caller)}
    found = cycle(instances[number])
    assert (found == []) == (number in free or callee in free)
    assert found == [] or (found[0] == str(number) and found[-1] in found[:-1] and len(set(found)) == len(found) - 1)
