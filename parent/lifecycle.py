"""The life of an instance, as a table of transitions. Readiness, the status table and the supervisor read nothing else."""

from __future__ import annotations

from enum import Enum
from typing import Dict


class State(Enum):
    """``STARTING``: the process is being made. ``LOADING``: it said hello and runs initialize. ``READY``: it serves. ``STOPPING``: it
    finalizes. ``STOPPED``: it ended when it should. ``FAILED``: it did not load, or ended when it should not."""

    STARTING = "STARTING"
    LOADING = "LOADING"
    READY = "READY"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class Event(Enum):
    """What happens to an instance."""

    HELLO = "hello"
    LOADED = "loaded"
    LOAD_FAILED = "load failed"
    STOP = "stop"
    EXITED = "exited"


NEXT: Dict[State, Dict[Event, State]] = {
    State.STARTING: {Event.HELLO: State.LOADING, Event.STOP: State.STOPPING, Event.EXITED: State.FAILED},
    State.LOADING: {
        Event.LOADED: State.READY,
        Event.LOAD_FAILED: State.FAILED,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.FAILED,
    },
    State.READY: {Event.STOP: State.STOPPING, Event.EXITED: State.FAILED},
    # A stub may still say that it loaded, or did not, while it is being stopped.
    State.STOPPING: {
        Event.HELLO: State.STOPPING,
        Event.LOADED: State.STOPPING,
        Event.LOAD_FAILED: State.STOPPING,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.STOPPED,
    },
    State.STOPPED: {Event.STOP: State.STOPPED},
    State.FAILED: {Event.STOP: State.FAILED, Event.EXITED: State.FAILED, Event.LOAD_FAILED: State.FAILED},
}


class IllegalTransition(Exception):
    """An event that the state does not allow: the stub broke the protocol."""


def advance(state: State, event: Event) -> State:
    """The state after ``event``.

    Raises:
        IllegalTransition: the table has no such row.
    """
    try:
        return NEXT[state][event]
    except KeyError:
        raise IllegalTransition(f"'{event.value}' cannot happen to an instance that is {state.value}") from None
