"""The life of an instance, as a table of transitions. Readiness, the status table and the supervisor read nothing else."""

from __future__ import annotations

from enum import Enum
from typing import Dict

_WITH_RINGS = ("WARMING", "SPARE", "READY", "DRAINING", "STOPPING")


class State(Enum):
    """``STARTING``: the process is being made. ``LOADING``: it said hello and runs initialize. ``WARMING``: it has loaded and executes
    the samples for its warm-up, if there are any. ``SPARE``: it is kept in reserve. ``READY``: it serves. ``DRAINING``: it gets no new
    requests and finishes those that it has. ``STOPPING``: it finalizes. ``STOPPED``: it ended when it should. ``FAILED``: it did not
    load, or ended when it should not, and that is how it stays. ``RESTARTING``: the same, but another will take its place.

    ``alive``: there may be a process. ``talks``: it reads and writes its rings. ``learns``: it is told of shared memory that comes and
    goes."""

    STARTING = "STARTING"
    LOADING = "LOADING"
    WARMING = "WARMING"
    SPARE = "SPARE"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    RESTARTING = "RESTARTING"

    def __init__(self, name: str) -> None:
        self.talks = name in _WITH_RINGS
        self.alive = self.talks or name in ("STARTING", "LOADING")
        self.learns = name != "STOPPING" and (self.talks or name == "LOADING")


class Event(Enum):
    """What happens to an instance."""

    HELLO = "hello"
    LOADED = "loaded"
    LOAD_FAILED = "load failed"
    RESERVE = "reserve"
    SERVE = "serve"
    RETIRE = "retire"
    STOP = "stop"
    EXITED = "exited"
    RESTART = "restart"
    GIVE_UP = "give up"


NEXT: Dict[State, Dict[Event, State]] = {
    State.STARTING: {Event.HELLO: State.LOADING, Event.STOP: State.STOPPING, Event.EXITED: State.FAILED},
    State.LOADING: {
        Event.LOADED: State.WARMING,
        Event.LOAD_FAILED: State.FAILED,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.FAILED,
    },
    State.WARMING: {
        Event.SERVE: State.READY,
        Event.RESERVE: State.SPARE,
        Event.LOAD_FAILED: State.FAILED,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.FAILED,
    },
    State.SPARE: {Event.SERVE: State.READY, Event.STOP: State.STOPPING, Event.EXITED: State.FAILED},
    State.READY: {Event.RETIRE: State.DRAINING, Event.STOP: State.STOPPING, Event.EXITED: State.FAILED},
    State.DRAINING: {Event.RETIRE: State.DRAINING, Event.STOP: State.STOPPING, Event.EXITED: State.FAILED},
    # A stub may still say that it loaded, or did not, while it is being stopped.
    State.STOPPING: {
        Event.HELLO: State.STOPPING,
        Event.LOADED: State.STOPPING,
        Event.LOAD_FAILED: State.STOPPING,
        Event.STOP: State.STOPPING,
        Event.EXITED: State.STOPPED,
    },
    State.STOPPED: {Event.STOP: State.STOPPED},
    State.FAILED: {
        Event.STOP: State.FAILED,
        Event.EXITED: State.FAILED,
        Event.LOAD_FAILED: State.FAILED,
        Event.RESTART: State.RESTARTING,
        Event.GIVE_UP: State.FAILED,
    },
    State.RESTARTING: {Event.STOP: State.STOPPED, Event.GIVE_UP: State.FAILED, Event.RESTART: State.RESTARTING},
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
