"""Dynamic batching: requests that wait are executed together (spec 5.4). Pure: it is told what happens and when, in nanoseconds of any clock,
and says what is to be done; requests and instances are whatever the caller names them by.

What goes into a batch, and when, is as in Triton's ``DynamicBatchScheduler``: as many requests from the head of the queue as fit, up to
the first of another shape; at once if they reach a preferred size, cannot grow, or need not wait. That is decided when the time comes to
look (``due``), not with each request: those that arrive at the same moment are executed together.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import Callable, Deque, Dict, Generic, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .scheduler import NOTHING, Actions, Instance, Reason, Request

Shapes = Tuple[Tuple[int, Tuple[int, ...]], ...]
"""(input, shape without the batch dimension) of each input that must have the same shape in all requests of a batch."""


class QueuePolicy(NamedTuple):
    """``max_size``: of the queue, 0 for any. ``timeout_ns``: how long a request may wait, 0 for ever. ``may_override``: a request may say so
    itself, if it wants to wait for less time. ``delays``: who has waited for too long is not rejected, but comes after all others."""

    max_size: int = 0
    timeout_ns: int = 0
    may_override: bool = False
    delays: bool = False


class Batching(NamedTuple):
    """``preferred``: sizes to be reached, in any order. ``delay_ns``: how long a request may be held for them. ``levels``: of priority, from 1
    on, which is the highest; ``default_level`` is that of a request that names none, or one that there is not. ``policies``: by level."""

    max_size: int
    preferred: Sequence[int] = ()
    delay_ns: int = 0
    levels: int = 1
    default_level: int = 1
    policies: Mapping[int, QueuePolicy] = {}
    default_policy: QueuePolicy = QueuePolicy()


class Arrival(NamedTuple):
    """What counts of a request. ``size``: batch items. ``priority``: 0 for none. ``timeout_ns``: 0 for none."""

    size: int = 1
    shapes: Shapes = ()
    priority: int = 0
    timeout_ns: int = 0


class _Waiting(Generic[Request]):
    """A request in the queue. ``gone``: it is to be passed over."""

    __slots__ = ("arrival", "gone", "level", "request", "since")

    def __init__(self, request: Request, arrival: Arrival, level: _Level[Request], since: int) -> None:
        self.request = request
        self.arrival = arrival
        self.level = level
        self.since = since
        self.gone = False


class _Level(Generic[Request]):
    """The queue of one priority. ``late``: those that have waited for too long, after all others."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.size = 0
        self.queue: Deque[_Waiting[Request]] = deque()
        self.late: Deque[_Waiting[Request]] = deque()


class DynamicBatcher(Generic[Instance, Request]):
    """A ``Scheduler``, which see.

    Args:
        describe: what counts of a request.
        capacity: how many batches an instance executes at a time.
        arrival_of: when a request arrived that comes back unexecuted: what it has waited already counts.
    """

    def __init__(
        self,
        batching: Batching,
        describe: Callable[[Request], Arrival],
        capacity: int = 1,
        arrival_of: Optional[Callable[[Request], int]] = None,
    ) -> None:
        self._batching = batching
        self._describe = describe
        self._arrival_of = arrival_of
        self._preferred = frozenset(batching.preferred)
        self._most = max(batching.preferred, default=batching.max_size)
        self._capacity = capacity
        policies = batching.policies
        self._levels = [_Level[Request](policies.get(level, batching.default_policy)) for level in range(1, batching.levels + 1)]
        self._waiting: Dict[Request, _Waiting[Request]] = {}
        self._deadlines: List[Tuple[int, int, _Waiting[Request]]] = []
        self._numbers = itertools.count()
        self._load: Dict[Instance, int] = {}
        self._idle: List[Instance] = []
        self._look_at: Optional[int] = None
        self._items = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def due(self) -> Optional[int]:
        while self._deadlines and self._deadlines[0][2].gone:
            heapq.heappop(self._deadlines)
        deadline = self._deadlines[0][0] if self._deadlines else None
        if self._look_at is None or deadline is None:
            return deadline if self._look_at is None else self._look_at
        return min(self._look_at, deadline)

    # Events

    def add(self, instance: Instance, now: int) -> Actions:
        self._load[instance] = 0
        self._idle.append(instance)
        return self._act(now)

    def remove(self, instance: Instance, unstarted: Sequence[Request], now: int) -> Actions:
        self.retire(instance)
        for request in reversed(unstarted):
            arrival = self._describe(request)
            level = self._level(arrival)
            waiting = _Waiting(request, arrival, level, now if self._arrival_of is None else self._arrival_of(request))
            self._note(waiting)
            level.queue.appendleft(waiting)
            self._limit(waiting)
        return self._act(now)

    def retire(self, instance: Instance) -> None:
        self._load.pop(instance, None)
        if instance in self._idle:
            self._idle.remove(instance)

    def enqueue(self, request: Request, now: int) -> Actions:
        arrival = self._describe(request)
        level = self._level(arrival)
        policy = level.policy
        if policy.max_size and level.size >= policy.max_size:
            return (), [(request, Reason.FULL)]
        waiting = _Waiting(request, arrival, level, now)
        self._note(waiting)
        level.queue.append(waiting)
        self._limit(waiting)
        if self._free() is not None:
            self._look_at = now
        return NOTHING

    def withdraw(self, request: Request) -> bool:
        waiting = self._waiting.get(request)
        if waiting is None:
            return False
        self._forget(waiting)
        return True

    def deadline(self, request: Request) -> Optional[int]:
        arrival = self._describe(request)
        policy = self._level(arrival).policy
        timeout = _timeout(policy, arrival)
        if not timeout or policy.delays or self._arrival_of is None:
            return None
        return self._arrival_of(request) + timeout

    def finished(self, instance: Instance, batches: int, now: int) -> Actions:
        if instance in self._load:  # else it was retired
            load = self._load[instance] = self._load[instance] - batches
            if load < self._capacity and instance not in self._idle:
                # The most recently used instance is taken first: its caches are warm.
                self._idle.append(instance)
        return self._act(now)

    def tick(self, now: int) -> Actions:
        return self._act(now)

    def drop_all(self) -> List[Request]:
        requests = [waiting.request for level in self._levels for waiting in _live(level)]
        for waiting in list(self._waiting.values()):
            self._forget(waiting)
        return requests

    # What follows

    def _level(self, arrival: Arrival) -> _Level[Request]:
        number = arrival.priority
        return self._levels[(number if 0 < number <= len(self._levels) else self._batching.default_level) - 1]

    def _note(self, waiting: _Waiting[Request]) -> None:
        waiting.level.size += 1
        self._items += waiting.arrival.size
        self._waiting[waiting.request] = waiting

    def _limit(self, waiting: _Waiting[Request]) -> None:
        """Sees to it that the request does not wait for longer than it may."""
        timeout = _timeout(waiting.level.policy, waiting.arrival)
        if timeout:
            heapq.heappush(self._deadlines, (waiting.since + timeout, next(self._numbers), waiting))

    def _forget(self, waiting: _Waiting[Request]) -> None:
        waiting.gone = True
        waiting.level.size -= 1
        self._items -= waiting.arrival.size
        del self._waiting[waiting.request]

    def _act(self, now: int) -> Actions:
        batches: List[Tuple[Instance, List[Request]]] = []
        refused = self._expire(now) if self._deadlines else []
        self._look_at = None
        while self._waiting and (instance := self._free()) is not None:
            batch = self._form(now, full=self._load[instance] >= self._capacity)
            if not batch:
                break
            batches.append((instance, batch))
            load = self._load[instance] = self._load[instance] + 1
            if load >= self._capacity and instance in self._idle:
                self._idle.remove(instance)
        return batches, refused

    def _free(self) -> Optional[Instance]:
        """Who may have the next batch. A lone instance may have one more than it executes, if that cannot grow any more: it waits in its ring
        instead of in the queue, and is begun without a look at this side. What has a deadline waits where that can be seen to."""
        if self._idle:
            return self._idle[-1] if self._capacity == 1 else min(reversed(self._idle), key=self._load.__getitem__)
        if len(self._load) == 1 and len(self._levels) == 1 and self._items >= self._most and not self._deadlines:
            ((instance, load),) = self._load.items()
            if load == self._capacity:
                return instance
        return None

    def _expire(self, now: int) -> List[Tuple[Request, Reason]]:
        refused = []
        while self._deadlines and (self._deadlines[0][2].gone or self._deadlines[0][0] <= now):
            waiting = heapq.heappop(self._deadlines)[2]
            if waiting.gone:
                continue
            if waiting.level.policy.delays:
                late = _Waiting(waiting.request, waiting.arrival, waiting.level, waiting.since)
                waiting.gone = True
                self._waiting[waiting.request] = late
                waiting.level.late.append(late)
            else:
                self._forget(waiting)
                refused.append((waiting.request, Reason.EXPIRED))
        return refused

    def _form(self, now: int, full: bool) -> List[Request]:
        """The next batch; empty if it had better wait.

        Args:
            full: only one that cannot grow.
        """
        batching = self._batching
        chosen: List[_Waiting[Request]] = []
        shapes: Dict[int, Tuple[int, ...]] = {}
        last: Shapes = ()
        total = best = best_count = 0
        grows, oldest = True, now
        for waiting in itertools.chain.from_iterable(map(_live, self._levels)):
            arrival = waiting.arrival
            reached = total + arrival.size
            if chosen:
                if reached > self._most and not best:
                    best, best_count = total, len(chosen)
                if reached > batching.max_size or (arrival.shapes != last and not agree(shapes, arrival.shapes)):
                    grows = False
                    break
            last = arrival.shapes
            shapes.update(last)
            chosen.append(waiting)
            total = reached
            oldest = min(oldest, waiting.since)
            if total in self._preferred:
                best, best_count = total, len(chosen)
        grows = grows and total < self._most
        if full and grows:
            return []
        overdue = batching.delay_ns > 0 and now - oldest >= batching.delay_ns
        if best and not overdue:
            del chosen[best_count:]
        elif grows and batching.delay_ns and not overdue:
            self._look_at = oldest + batching.delay_ns
            return []
        for waiting in chosen:
            self._forget(waiting)
        return [waiting.request for waiting in chosen]


def _timeout(policy: QueuePolicy, arrival: Arrival) -> int:
    """How long a request may wait, 0 for ever."""
    if policy.may_override and arrival.timeout_ns and (not policy.timeout_ns or arrival.timeout_ns < policy.timeout_ns):
        return arrival.timeout_ns
    return policy.timeout_ns


def _live(level: _Level[Request]) -> Iterator[_Waiting[Request]]:
    """Those who wait, in order. Those who are gone are dropped from the head."""
    for queue in (level.queue, level.late):
        while queue and queue[0].gone:
            queue.popleft()
        for waiting in queue:
            if not waiting.gone:
                yield waiting


def agree(shapes: Mapping[int, Tuple[int, ...]], more: Shapes) -> bool:
    return all(shapes.get(index, shape) == shape for index, shape in more)
