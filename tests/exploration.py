"""Every way in which two sides of shared memory may run, with the code that really runs there.

A program is a function that touches memory, bells and fences of a ``Machine`` only. Each of its loads, stores, fences and system calls is a step;
``explore`` tries every order of the steps of all programs and every moment at which a store becomes visible, and follows each state that it
reaches once. Memory behaves in one of two ways:

    strong   x86-TSO: each side's stores wait in a queue and become visible in order; a load sees the own queue first.
    weak     ARM and the like: stores of one side to different places become visible in any order, and a load may see any value that was there
             since the last fence of its side. Dependencies between steps order nothing, so that more is tried than an ARM core does.

A system call on a bell orders like a fence: the kernel takes the lock of the eventfd, and whoever reads what another wrote has seen what that one did before.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable, Dict, Hashable, Iterator, List, NamedTuple, Optional, Set, Tuple

from greenlet import greenlet

Place = Hashable
Program = Callable[[], None]

Choice = Tuple[int, int, int]
"""What happens next: (side, 0, which value it sees), or (side, 1, which of its stores becomes visible)."""


class Step(NamedTuple):
    """What a program is about to do."""

    kind: str
    place: Place = None
    value: Any = None


class _Side:
    """A program, with its stores that are not visible yet, and, by place, the oldest value that it may still see."""

    def __init__(self, program: Program) -> None:
        self.greenlet = greenlet(program)
        self.step: Optional[Step] = None
        self.queue: List[Tuple[Place, Any]] = []
        self.floor: Dict[Place, int] = {}

    def resume(self, *result: Any) -> None:
        self.step = self.greenlet.switch(*result)

    def end(self) -> None:
        """Unwinds the program where it waits: one that is never resumed would keep its stack and all that this refers to for ever."""
        self.greenlet.throw()
        assert self.greenlet.dead, "a program goes on after its end"

    def position(self) -> Hashable:
        """Where the program is and what it knows: two sides that agree in it go on alike."""
        frames = []
        frame = self.greenlet.gr_frame
        while frame is not None:
            known = tuple((name, value) for name, value in frame.f_locals.items() if isinstance(value, (int, bytes, type(None))))
            frames.append((frame.f_code, frame.f_lasti, known))
            frame = frame.f_back
        return tuple(frames)


class Machine:
    """What the programs share.

    Args:
        weak: see above.
        state: what the programs' objects hold beside local variables.
    """

    def __init__(self, weak: bool, state: Callable[[], Hashable]) -> None:
        self.weak = weak
        self.state = state
        self.history: Dict[Place, List[Any]] = defaultdict(lambda: [0])
        """What was visible at each place, in order; each begins with 0."""
        self.bells: Dict[Place, int] = {}
        self.sides: List[_Side] = []

    # For programs

    def load(self, place: Place) -> Any:
        return self._do(Step("load", place))

    def store(self, place: Place, value: Any) -> None:
        self._do(Step("store", place, value))

    def fence(self) -> None:
        self._do(Step("fence"))

    def ring(self, bell: Place) -> None:
        """As a write to an eventfd."""
        self._do(Step("ring", bell))

    def silence(self, bell: Place) -> None:
        """As a read of an eventfd that does not block."""
        self._do(Step("silence", bell))

    def sleep(self, bell: Place) -> None:
        """Until the bell rings."""
        self._do(Step("sleep", bell))

    def wait_for_change(self, place: Place, seen: Any) -> None:
        """As polling until a place has another value."""
        self._do(Step("change", place, seen))

    def _do(self, step: Step) -> Any:
        main = greenlet.getcurrent().parent
        assert main is not None
        return main.switch(step)

    # For the explorer

    def start(self, programs: List[Program]) -> None:
        self.sides = [_Side(program) for program in programs]
        for side in self.sides:
            side.resume()

    def end(self) -> None:
        """Ends the programs that still run."""
        for side in self.sides:
            if not side.greenlet.dead:
                side.end()

    def choices(self) -> List[Choice]:
        """What may happen next."""
        found: List[Choice] = []
        for number, side in enumerate(self.sides):
            if side.step is not None and (side.step.kind == "store" or (side.step.kind == "fence" and not side.queue)):
                return [(number, 0, 0)]  # nobody else sees it, so nothing is missed if it comes first
            found += [(number, 0, seen) for seen in self._ways(side)]
            places: Set[Place] = set()
            for index, (place, _) in enumerate(side.queue):
                if place not in places and (self.weak or index == 0):
                    found.append((number, 1, index))
                places.add(place)
        return found

    def _ways(self, side: _Side) -> Iterator[int]:
        step = side.step
        if step is None:
            return
        values = self.history[step.place]
        if step.kind == "load":
            own = any(place == step.place for place, _ in side.queue)
            yield from [len(values) - 1] if own or not self.weak else range(side.floor.get(step.place, 0), len(values))
        elif step.kind == "sleep":
            yield from [0] if self.bells.get(step.place) else []
        elif step.kind == "change":
            yield from [0] if values[-1] != step.value else []
        elif step.kind in ("fence", "ring", "silence"):
            yield from [] if side.queue else [0]  # once every store is visible
        else:
            yield 0

    def take(self, choice: Choice) -> None:
        number, visible, which = choice
        side = self.sides[number]
        if visible:
            place, value = side.queue.pop(which)
            self.history[place].append(value)
            side.floor[place] = len(self.history[place]) - 1
            return
        step = side.step
        assert step is not None
        side.resume(self._perform(side, step, which))

    def _perform(self, side: _Side, step: Step, which: int) -> Any:
        if step.kind == "store":
            side.queue.append((step.place, step.value))
        elif step.kind == "load":
            own = [value for place, value in side.queue if place == step.place]
            if own:
                return own[-1]
            side.floor[step.place] = max(which, side.floor.get(step.place, 0))
            return self.history[step.place][which]
        else:
            side.floor.update({place: len(values) - 1 for place, values in self.history.items()})
            if step.kind == "ring":
                self.bells[step.place] = 1
            elif step.kind == "silence":
                self.bells[step.place] = 0
        return None

    def key(self) -> Hashable:
        """What the future depends on."""
        places = sorted((place for place, values in self.history.items() if len(values) > 1), key=repr)
        kept = {p: min([side.floor.get(p, 0) for side in self.sides] if self.weak else [len(self.history[p]) - 1]) for p in places}
        memory = tuple((p, tuple(self.history[p][kept[p] :])) for p in places)
        floors = [tuple(side.floor.get(p, 0) - kept[p] for p in places) if self.weak else () for side in self.sides]
        sides = tuple((side.position(), side.step, tuple(side.queue), floor) for side, floor in zip(self.sides, floors))
        return memory, tuple(sorted(self.bells.items())), sides, self.state()


class Stuck(Exception):
    """A state in which a program waits and nothing will ever happen."""


def explore(setting: Callable[[], Tuple[Machine, List[Program]]]) -> int:
    """Tries everything; returns how many states there are.

    Args:
        setting: makes a new machine and its programs.

    Raises:
        Stuck: a program waits for ever.
        Exception: whatever a program raises.
    """
    seen: Set[Hashable] = set()
    todo: List[List[Choice]] = [[]]
    while todo:
        machine, programs = setting()
        try:
            machine.start(programs)
            todo += _follow(machine, todo.pop(), seen)
        finally:
            machine.end()
    return len(seen)


def _follow(machine: Machine, way: List[Choice], seen: Set[Hashable]) -> Iterator[List[Choice]]:
    """Goes this way, and on by the first choice until a state that was ``seen``; the ways that branch off."""
    for choice in way:
        machine.take(choice)
    while True:
        key = machine.key()
        if key in seen:
            return
        seen.add(key)
        first, *others = machine.choices() or [None]
        if first is None:
            waiting = [side.step for side in machine.sides if side.step is not None]
            if waiting:
                raise Stuck(f"after {len(way)} steps: {waiting}")
            return
        yield from ([*way, other] for other in others if other is not None)
        way.append(first)
        machine.take(first)
