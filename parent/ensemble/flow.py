"""The way of one request through an ensemble: which steps can run, when the answer is complete, what nobody needs any more. Pure: it is
told what arrives, and says what is to be done; the sources of tensors are whatever the caller names them by.

    request ──> scope 0 ──> step ──> step ──> answer
                  └──> decoupled step ──> scope 1 ──> step ──> answer
                                     └──> scope 2 ──> step ──> answer

All tensors that come from one place (the request, or one response of a step) arrive together: they are a source. A source belongs to a
scope: what is there before any decoupled step ran, or what follows from one response of a decoupled step. A step runs in a scope as soon
as that has every source that the step takes inputs from; so does the answer.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, FrozenSet, Hashable, List, NamedTuple, Optional, Sequence, Tuple

REQUEST = 0
"""The origin of the inputs of the ensemble; the origin of what step n puts out is n + 1."""


class Course(NamedTuple):
    """What has to run for the outputs that are wanted.

    ``needs``: for each step the origins that it takes inputs from, () for one that does not run; in the last place, those of the answer.
    ``takers``: for each origin, the steps that take from it; the number of steps stands for the answer. ``decoupled``: which steps are.
    ``feeders``: for each step the decoupled ones that it runs after. ``limit``: how often a step may be under way at a time, 0 for
    any number. ``is_chain``: one step after the other, each of which runs once and takes what comes from one place only.
    """

    needs: Tuple[Tuple[int, ...], ...]
    takers: Tuple[Tuple[int, ...], ...]
    decoupled: Tuple[bool, ...]
    feeders: Tuple[FrozenSet[int], ...]
    limit: int = 0
    is_chain: bool = False


def course_of(needs: Sequence[Sequence[int]], decoupled: Sequence[bool], limit: int = 0) -> Course:
    """The course of an ensemble whose last need is that of the answer. Steps that lead to no origin of the answer do not run."""
    answer = len(needs) - 1
    wanted = {answer}
    todo = [answer]
    while todo:
        for origin in needs[todo.pop()]:
            if origin != REQUEST and origin - 1 not in wanted:
                wanted.add(origin - 1)
                todo.append(origin - 1)
    kept = tuple(tuple(sorted(set(origins))) if taker in wanted else () for taker, origins in enumerate(needs))
    takers = tuple(tuple(taker for taker, origins in enumerate(kept) if origin in origins) for origin in range(answer + 1))
    feeders = tuple(frozenset(_feeders(step, kept, decoupled)) for step in range(answer))
    running = [step for step, origins in enumerate(kept[:-1]) if origins]
    alone = all(len(origins) <= 1 for origins in kept) and all(len(takers[origin]) == 1 for origin in (REQUEST, *[s + 1 for s in running]))
    is_chain = alone and not limit and not any(decoupled[step] for step in running)
    return Course(kept, takers, tuple(decoupled), feeders, limit, is_chain)


def _feeders(step: int, needs: Sequence[Sequence[int]], decoupled: Sequence[bool]) -> List[int]:
    before: List[int] = []
    todo = [step]
    while todo:
        for origin in needs[todo.pop()]:
            if origin != REQUEST and origin - 1 not in before:
                before.append(origin - 1)
                todo.append(origin - 1)
    return [one for one in before if decoupled[one]]


class Scope:
    """``sources``: what has arrived in it, by origin. ``missing``: how many origins each taker still waits for."""

    __slots__ = ("missing", "sources")

    def __init__(self, course: Course) -> None:
        self.sources: Dict[int, Any] = {}
        self.missing = [len(origins) for origins in course.needs]


class Run:
    """One execution of a step, on what came from ``sources``, in the order of the step's needs. ``held``: it is to wait with its next
    response. ``work``: the caller's own."""

    __slots__ = ("held", "scope", "sources", "step", "work")

    def __init__(self, step: int, scope: Scope) -> None:
        self.step = step
        self.scope = scope
        self.sources: Tuple[Any, ...] = ()
        self.held = False
        self.work: Any = None


class Actions:
    """What is to be done, in this order: ``starts``; ``answer`` with what came from these sources, if there is one; ``end`` the request,
    with the answer if there is one; ``cancels``; ``holds``, runs that are to wait or to go on; give back what is ``released``."""

    __slots__ = ("answer", "cancels", "end", "holds", "released", "starts")

    def __init__(self) -> None:
        self.starts: List[Run] = []
        self.answer: Optional[Tuple[Any, ...]] = None
        self.end = False
        self.cancels: List[Run] = []
        self.holds: List[Tuple[Run, bool]] = []
        self.released: List[Hashable] = []


class Flow:
    """Each event returns the actions that follow from it. ``over``: nothing more is said to whoever asked. ``open``: the runs that are
    under way; they are told of until the last of them has ended, whatever else has."""

    __slots__ = ("_client_holds", "_course", "_held", "_running", "_started", "_waiting", "open", "over")

    def __init__(self, course: Course) -> None:
        self._course = course
        self._held: Dict[Hashable, int] = {}
        self._running: Dict[int, int] = {}
        self._waiting: Dict[int, Deque[Run]] = {}
        self._client_holds = False
        self._started = 0
        self.open: Dict[Run, None] = {}
        self.over = False

    def begin(self, source: Hashable) -> Actions:
        """The request is there."""
        actions = Actions()
        self._arrive(Scope(self._course), REQUEST, source, actions)
        self._look_for_end(actions)
        return actions

    def responded(self, run: Run, source: Optional[Hashable], final: bool) -> Actions:
        """A run has answered, perhaps for the last time, or has ended without saying more (``source`` None)."""
        actions = Actions()
        if source is not None:
            if self.over:
                actions.released.append(source)
            else:
                scope = Scope(self._course) if self._course.decoupled[run.step] else run.scope
                self._arrive(scope, run.step + 1, source, actions)
        if final:
            self._close(run, actions)
            self._look_for_end(actions)
        return actions

    def failed(self, run: Run, final: bool = True) -> Actions:
        """A run has failed, and with it the request. ``final``: nothing more comes of it."""
        if final:
            self.open.pop(run, None)
        return self.stop()

    def stop(self) -> Actions:
        """Nobody wants the answer any more, or there can be none."""
        actions = Actions()
        if not self.over:
            self.over = True
            actions.cancels += self.open
            actions.released += self._held
            self._held.clear()
            self._waiting.clear()
        return actions

    def hold(self, held: bool) -> Actions:
        """Whoever asked wants no more responses for now, or wants them again."""
        actions = Actions()
        self._client_holds = held
        self._see_to_holds(actions)
        return actions

    def to_come(self) -> List[int]:
        """The steps of which not a single run was begun, so far as they are needed."""
        return [step for step, origins in enumerate(self._course.needs[:-1]) if origins and not self._started >> step & 1]

    def _arrive(self, scope: Scope, origin: int, source: Hashable, actions: Actions) -> None:
        course = self._course
        takers = course.takers[origin]
        if course.is_chain:
            # The same as below, for most ensembles: nothing waits for anything else.
            if takers[0] == len(course.decoupled):
                actions.answer = (source,)
            else:
                run = Run(takers[0], scope)
                run.sources = (source,)
                self.open[run] = None
                self._started |= 1 << run.step
                actions.starts.append(run)
            actions.released.append(source)
            return
        if not takers:
            actions.released.append(source)
            return
        scope.sources[origin] = source
        self._held[source] = len(takers)
        answer = len(course.decoupled)
        for taker in takers:
            scope.missing[taker] -= 1
            if scope.missing[taker]:
                continue
            if taker == answer:
                actions.answer = self._take(scope, taker, actions)
            elif course.limit and self._running.get(taker, 0) >= course.limit:
                self._waiting.setdefault(taker, deque()).append(Run(taker, scope))
                self._see_to_holds(actions)
            else:
                self._start(Run(taker, scope), actions)

    def _start(self, run: Run, actions: Actions) -> None:
        step = run.step
        run.sources = self._take(run.scope, step, actions)
        self.open[run] = None
        self._started |= 1 << step
        if self._course.limit:
            self._running[step] = self._running.get(step, 0) + 1
        actions.starts.append(run)
        if self._course.decoupled[step]:
            self._see_to_hold(run, actions)

    def _take(self, scope: Scope, taker: int, actions: Actions) -> Tuple[Any, ...]:
        held = self._held
        sources = tuple([scope.sources[origin] for origin in self._course.needs[taker]])
        for source in sources:
            held[source] -= 1
            if not held[source]:
                del held[source]
                actions.released.append(source)
        return sources

    def _close(self, run: Run, actions: Actions) -> None:
        self.open.pop(run, None)
        if not self._course.limit:
            return
        step = run.step
        self._running[step] -= 1
        waiting = self._waiting.get(step)
        if waiting:
            self._start(waiting.popleft(), actions)
            if not waiting:
                del self._waiting[step]
                self._see_to_holds(actions)

    def _look_for_end(self, actions: Actions) -> None:
        if not self.open and not self._waiting and not self.over:
            self.over = actions.end = True

    def _see_to_holds(self, actions: Actions) -> None:
        for run in self.open:
            if self._course.decoupled[run.step]:
                self._see_to_hold(run, actions)

    def _see_to_hold(self, run: Run, actions: Actions) -> None:
        held = self._client_holds or any(run.step in self._course.feeders[step] for step in self._waiting)
        if held != run.held:
            run.held = held
            actions.holds.append((run, held))
