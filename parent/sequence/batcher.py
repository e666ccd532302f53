"""Sequence batching: requests that belong together go to one instance, one after the other (spec 5.4). Pure: it is told what happens and when,
in nanoseconds of any clock, and says what is to be done; requests, instances and sequences are whatever the caller names them by.

Each instance has places for a number of sequences (``_Seats``). A sequence takes one with its first request and has it until its END is
executed, it is idle for too long, one of its requests is cancelled, or its instance is gone; those that find none wait in the backlog, first
come, first served. What is executed together, and when, is for the strategy to say (``strategies``). It is decided
when the time comes to look (``due``), not with each request: those that arrive at the same moment are executed together.

An instance executes one batch at a time, and a sequence has one request in it at most, so its requests are executed in their order.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import Callable, Deque, Dict, Generic, Hashable, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

from ..scheduling.batcher import Shapes
from ..scheduling.scheduler import NOTHING, Actions, Instance, Reason, Request


class Member(NamedTuple):
    """What counts of a request. ``sequence``: which it belongs to. ``timeout_ns``: how long it may wait in the backlog, 0 for ever."""

    sequence: Hashable
    start: bool = False
    end: bool = False
    timeout_ns: int = 0
    shapes: Shapes = ()


class Entry(Generic[Request]):
    """A request in the queue of its sequence, since the time ``since``."""

    __slots__ = ("member", "request", "since")

    def __init__(self, request: Request, member: Member, since: int) -> None:
        self.request = request
        self.member = member
        self.since = since


class Choice(NamedTuple):
    """What a strategy says: the places whose next requests are to be executed now, in the order of the batch; if there are none, when to look
    again, None for not before something happens."""

    places: Sequence[int]
    look_at: Optional[int] = None


class Strategy(Protocol):
    """Chooses what of the requests that are next at their places is executed together."""

    @property
    def places(self) -> int:
        """How many sequences an instance has at a time."""

    def choose(self, heads: Mapping[int, Entry], now: int) -> Choice:
        """Args:
        heads: of an instance that is free: the next request of each sequence that has one, by its place, and at least one; in the order in
            which they became that.
        """


class _Sequence(Generic[Instance, Request]):
    """Requests that belong together. ``ending``: the last that has come is an END, so that the next has to be a START."""

    __slots__ = ("ending", "executing", "id", "over", "place", "queue", "seats")

    def __init__(self, sequence: Hashable) -> None:
        self.id = sequence
        self.queue: Deque[Entry[Request]] = deque()
        self.seats: Optional[_Seats[Instance, Request]] = None
        self.place = -1
        self.executing: Optional[Entry[Request]] = None
        self.ending = False
        self.over = False


class _Seats(Generic[Instance, Request]):
    """The places of an instance. ``free``: a heap. ``heads``: as a strategy is told. ``retired``: no other sequences take any."""

    __slots__ = ("batch", "free", "heads", "instance", "places", "retired")

    def __init__(self, instance: Instance, places: int) -> None:
        self.instance = instance
        self.places: List[Optional[_Sequence[Instance, Request]]] = [None] * places
        self.free = list(range(places))
        self.heads: Dict[int, Entry[Request]] = {}
        self.batch: List[_Sequence[Instance, Request]] = []
        self.retired = False


class SequenceBatcher(Generic[Instance, Request]):
    """A ``Scheduler``, which see.

    Args:
        describe: what counts of a request.
        idle_ns: how long a sequence may be without a request before it is dropped.
        iterative: each request is a sequence of its own, which ends when the model does not ask for it ``again``; it is dropped if that
            takes longer than ``idle_ns``.
        on_end: is called with the id of each sequence that has ended, however it did.
        most: requests that may wait, 0 for any number.
    """

    def __init__(
        self,
        strategy: Strategy,
        describe: Callable[[Request], Member],
        idle_ns: int,
        iterative: bool = False,
        on_end: Callable[[Hashable], None] = lambda _: None,
        most: int = 0,
    ) -> None:
        self._strategy = strategy
        self._describe = describe
        self._idle_ns = idle_ns
        self._iterative = iterative
        self._on_end = on_end
        self._most = most
        self._sequences: Dict[Hashable, _Sequence[Instance, Request]] = {}
        self._of: Dict[Request, _Sequence[Instance, Request]] = {}  # of the requests that wait
        self._instances: Dict[Instance, _Seats[Instance, Request]] = {}
        self._backlog: Dict[_Sequence[Instance, Request], None] = {}  # in order
        self._deadlines: List[Tuple[int, int, _Sequence[Instance, Request]]] = []  # of those in the backlog
        self._idle: Dict[_Sequence[Instance, Request], int] = {}  # until when; in order
        self._numbers = itertools.count()
        self._look_at: Optional[int] = None
        self._refused: List[Tuple[Request, Reason]] = []

    @property
    def waiting(self) -> int:
        return len(self._of)

    @property
    def due(self) -> Optional[int]:
        while self._deadlines and self._deadlines[0][2] not in self._backlog:
            heapq.heappop(self._deadlines)
        times = [] if self._look_at is None else [self._look_at]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self._idle:
            times.append(next(iter(self._idle.values())))
        return min(times, default=None)

    # Questions

    def expects(self, sequence: Hashable) -> bool:
        """Whether a request of that sequence need not be a START."""
        found = self._sequences.get(sequence)
        return found is not None and not found.ending

    def is_known(self, sequence: Hashable) -> bool:
        """Whether there is such a sequence, and be it one that ends."""
        return sequence in self._sequences

    def is_bound(self, instance: Instance) -> bool:
        """Whether an instance has sequences that have not ended."""
        return instance in self._instances and len(self._instances[instance].free) < self._strategy.places

    def place_of(self, sequence: Hashable) -> int:
        """At which place of its instance a sequence is; -1 if it has none."""
        found = self._sequences.get(sequence)
        return -1 if found is None else found.place

    # Events

    def add(self, instance: Instance, now: int) -> Actions:
        self._instances[instance] = _Seats(instance, self._strategy.places)
        self._seat_backlog()
        return self._act(now)

    def remove(self, instance: Instance, unstarted: Sequence[Request], now: int) -> Actions:
        """As every scheduler's, but that what the instance was handed and has not started is refused: what came before it is lost."""
        seats = self._instances.pop(instance, None)
        if seats is not None:
            self._refused += [(request, Reason.LOST) for request in unstarted]
            for sequence in seats.places:
                if sequence is not None:
                    self._drop(sequence, Reason.LOST)
        return self._act(now)

    def retire(self, instance: Instance) -> None:
        """As every scheduler's, but that the sequences that an instance has are not others'."""
        if instance in self._instances:
            self._instances[instance].retired = True

    def enqueue(self, request: Request, now: int) -> Actions:
        member = self._describe(request)
        sequence = self._sequences.get(member.sequence)
        if not member.start and (sequence is None or sequence.ending):
            return (), [(request, Reason.NO_START)]
        if self._most and len(self._of) >= self._most:
            return (), [(request, Reason.FULL)]
        if sequence is None:
            sequence = self._sequences[member.sequence] = _Sequence(member.sequence)
            self._backlog[sequence] = None
            if len(self._backlog) == 1:  # else there is no place
                self._seat_backlog()
        sequence.queue.append(Entry(request, member, now))
        self._of[request] = sequence
        sequence.ending = member.end or self._iterative
        if not self._iterative:
            self._idle.pop(sequence, None)
        if sequence.seats is not None:
            self._line_up(sequence)
            if not sequence.seats.batch:
                self._look_at = now
        elif member.timeout_ns:
            heapq.heappush(self._deadlines, (now + member.timeout_ns, next(self._numbers), sequence))
        return NOTHING

    def again(self, request: Request, now: int) -> Optional[Reason]:
        """The model wants to execute a request once more; to be told before its batch is ``finished``. Why that cannot be, or None."""
        member = self._describe(request)
        sequence = self._sequences.get(member.sequence)
        if sequence is None or sequence.executing is None or sequence.executing.request is not request:
            return Reason.NO_START
        self._idle.pop(sequence, None)
        sequence.executing = None
        sequence.queue.appendleft(Entry(request, member, now))
        self._of[request] = sequence
        return None

    def withdraw(self, request: Request) -> bool:
        """As every scheduler's. With the request its sequence ends, because the next ones would be executed without it: they are refused when
        it is next looked."""
        sequence = self._of.pop(request, None)
        if sequence is None:
            return False
        sequence.queue = deque([entry for entry in sequence.queue if entry.request is not request])
        self._drop(sequence, Reason.CANCELLED)
        self._look_at = 0
        return True

    def deadline(self, request: Request) -> Optional[int]:
        """As every scheduler's: a sequence has to wait for its place only."""
        return None

    def skip(self, request: Request) -> None:
        """A request that was handed over, if it was, is not executed after all: its sequence ends, as with ``withdraw``."""
        sequence = self._sequences.get(self._describe(request).sequence)
        if sequence is not None and sequence.executing is not None and sequence.executing.request is request:
            self._drop(sequence, Reason.CANCELLED)
            self._look_at = 0

    def finished(self, instance: Instance, batches: int, now: int) -> Actions:
        seats = self._instances.get(instance)
        if seats is None:
            return NOTHING
        batch, seats.batch = seats.batch, []
        for sequence in batch:
            sequence.executing = None
            self._idle.pop(sequence, None)
            if sequence.over:
                self._leave(sequence)
            elif sequence.queue:
                self._line_up(sequence)
            elif sequence.ending:
                self._end(sequence)
            else:
                self._idle[sequence] = now + self._idle_ns
        return self._act(now)

    def tick(self, now: int) -> Actions:
        return self._act(now)

    def drop_all(self) -> List[Request]:
        requests = list(self._of)
        for sequence in list(self._sequences.values()):
            sequence.queue.clear()
            self._drop(sequence, Reason.LOST)
        self._of.clear()
        return requests

    # What follows

    def _act(self, now: int) -> Actions:
        self._expire(now)
        self._look_at = None
        batches: List[Tuple[Instance, List[Request]]] = []
        for seats in self._instances.values():
            if seats.heads and not seats.batch:
                batch = self._form(seats, now)
                if batch:
                    batches.append((seats.instance, batch))
        refused, self._refused = self._refused, []
        return batches, refused

    def _form(self, seats: _Seats[Instance, Request], now: int) -> List[Request]:
        choice = self._strategy.choose(seats.heads, now)
        if choice.look_at is not None and (self._look_at is None or choice.look_at < self._look_at):
            self._look_at = choice.look_at
        requests = []
        for place in choice.places:
            sequence = seats.places[place]
            assert sequence is not None
            sequence.executing = entry = sequence.queue.popleft()
            del seats.heads[place]
            del self._of[entry.request]
            seats.batch.append(sequence)
            requests.append(entry.request)
            if self._iterative:
                self._idle.pop(sequence, None)
                self._idle[sequence] = now + self._idle_ns
        return requests

    def _expire(self, now: int) -> None:
        while self._deadlines and (self._deadlines[0][2] not in self._backlog or self._deadlines[0][0] <= now):
            sequence = heapq.heappop(self._deadlines)[2]
            if sequence in self._backlog:
                self._drop(sequence, Reason.SEQUENCE_EXPIRED)
        while self._idle:
            sequence, until = next(iter(self._idle.items()))
            if until > now:
                break
            self._drop(sequence, Reason.SEQUENCE_EXPIRED)

    def _drop(self, sequence: _Sequence[Instance, Request], reason: Reason) -> None:
        """Ends a sequence, whatever is left of it, which is refused."""
        for entry in sequence.queue:
            del self._of[entry.request]
            self._refused.append((entry.request, reason))
        sequence.queue.clear()
        self._end(sequence)

    def _end(self, sequence: _Sequence[Instance, Request]) -> None:
        """Nothing more comes of a sequence. It keeps its place while a request of it is executed."""
        if sequence.over:
            return
        sequence.over = True
        del self._sequences[sequence.id]
        self._idle.pop(sequence, None)
        self._backlog.pop(sequence, None)
        self._on_end(sequence.id)
        if sequence.executing is None:
            self._leave(sequence)

    def _leave(self, sequence: _Sequence[Instance, Request]) -> None:
        seats = sequence.seats
        if seats is None:
            return
        seats.places[sequence.place] = None
        seats.heads.pop(sequence.place, None)
        heapq.heappush(seats.free, sequence.place)
        sequence.seats, sequence.place = None, -1
        self._seat_backlog()

    def _seat_backlog(self) -> None:
        """Gives those who have waited longest a place, as long as there are any: at the instance that has the fewest sequences, the first."""
        while self._backlog:
            seats, most = None, 0
            for one in self._instances.values():
                if len(one.free) > most and not one.retired:
                    seats, most = one, len(one.free)
            if seats is None:
                return
            sequence = next(iter(self._backlog))
            del self._backlog[sequence]
            sequence.seats = seats
            sequence.place = heapq.heappop(seats.free)
            seats.places[sequence.place] = sequence
            if sequence.queue:
                self._line_up(sequence)

    def _line_up(self, sequence: _Sequence[Instance, Request]) -> None:
        """The sequence has a place, and a request that waits."""
        if sequence.executing is None and sequence.seats is not None:
            sequence.seats.heads.setdefault(sequence.place, sequence.queue[0])
