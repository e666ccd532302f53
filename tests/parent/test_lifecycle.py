"""The life of an instance, as a table."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.lifecycle import NEXT, Event, IllegalTransition, State, advance

EVENTS = st.lists(st.sampled_from(Event), max_size=20)


@pytest.mark.parametrize(
    "events, end",
    [
        ([Event.HELLO, Event.LOADED], State.WARMING),
        ([Event.HELLO, Event.LOADED, Event.SERVE], State.READY),
        ([Event.HELLO, Event.LOADED, Event.RESERVE], State.SPARE),
        ([Event.HELLO, Event.LOADED, Event.RESERVE, Event.SERVE], State.READY),
        ([Event.HELLO, Event.LOADED, Event.SERVE, Event.RETIRE], State.DRAINING),
        ([Event.HELLO, Event.LOADED, Event.SERVE, Event.RETIRE, Event.STOP, Event.EXITED], State.STOPPED),
        ([Event.HELLO, Event.LOADED, Event.SERVE, Event.STOP, Event.EXITED], State.STOPPED),
        ([Event.HELLO, Event.LOADED, Event.LOAD_FAILED, Event.EXITED], State.FAILED),
        ([Event.HELLO, Event.LOADED, Event.SERVE, Event.EXITED, Event.RESTART], State.RESTARTING),
        ([Event.HELLO, Event.LOADED, Event.SERVE, Event.EXITED, Event.RESTART, Event.GIVE_UP], State.FAILED),
        ([Event.HELLO, Event.LOADED, Event.SERVE, Event.EXITED, Event.RESTART, Event.STOP], State.STOPPED),
        ([Event.HELLO, Event.LOAD_FAILED, Event.EXITED], State.FAILED),
        ([Event.EXITED], State.FAILED),
        ([Event.HELLO, Event.EXITED], State.FAILED),
        ([Event.HELLO, Event.LOADED, Event.EXITED], State.FAILED),
        ([Event.STOP, Event.HELLO, Event.LOADED, Event.EXITED], State.STOPPED),
        ([Event.HELLO, Event.STOP, Event.LOAD_FAILED, Event.EXITED], State.STOPPED),
        ([Event.HELLO, Event.LOADED, Event.STOP, Event.STOP, Event.EXITED, Event.STOP], State.STOPPED),
    ],
    ids=lambda value: " ".join(event.value for event in value) if isinstance(value, list) else value.value,
)
def test_lives(events: List[Event], end: State) -> None:
    state = State.STARTING
    for event in events:
        state = advance(state, event)
    assert state is end


@pytest.mark.parametrize(
    "state, event",
    [
        (State.STARTING, Event.LOADED),
        (State.LOADING, Event.HELLO),
        (State.READY, Event.HELLO),
        (State.READY, Event.LOADED),
        (State.STOPPED, Event.HELLO),
        (State.FAILED, Event.LOADED),
    ],
)
def test_what_cannot_happen_is_named(state: State, event: Event) -> None:
    with pytest.raises(IllegalTransition, match=f"'{event.value}' cannot happen to an instance that is {state.value}"):
        advance(state, event)


def test_every_state_can_be_stopped_and_has_a_row() -> None:
    assert set(NEXT) == set(State)
    assert all(Event.STOP in row for row in NEXT.values())


@pytest.mark.parametrize("state", [state for state in State if state.alive])
def test_every_living_state_ends_with_its_process(state: State) -> None:
    assert advance(state, Event.EXITED) in (State.FAILED, State.STOPPED)


@given(events=EVENTS)
def test_nothing_comes_back_from_the_dead(events: List[Event]) -> None:
    state = State.STARTING
    ended = False
    for event in events:
        try:
            state = advance(state, event)
        except IllegalTransition:
            continue
        assert not ended or state in (State.STOPPED, State.FAILED, State.RESTARTING)
        ended = ended or state in (State.STOPPED, State.FAILED)


@given(events=EVENTS)
def test_only_what_loaded_is_ready(events: List[Event]) -> None:
    state, loaded = State.STARTING, False
    for event in events:
        try:
            state = advance(state, event)
        except IllegalTransition:
            continue
        loaded = loaded or event is Event.LOADED
        assert state is not State.READY or loaded


@given(events=EVENTS)
def test_what_stops_does_not_serve_again(events: List[Event]) -> None:
    state, stopped = State.STARTING, False
    for event in events:
        try:
            state = advance(state, event)
        except IllegalTransition:
            continue
        stopped = stopped or event is Event.STOP
        assert not (stopped and state is State.READY)
