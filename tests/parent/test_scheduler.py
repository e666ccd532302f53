"""The default scheduler, told as events."""

from __future__ import annotations

from typing import Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stublet.parent.scheduling.scheduler import LOOKAHEAD, Actions, DefaultScheduler, Reason


def pairs(actions: Actions) -> List[Tuple[str, int]]:
    """(instance, request) of each batch, which is of one request."""
    batches, refused = actions
    assert not refused and all(len(batch) == 1 for _, batch in batches)
    return [(instance, batch[0]) for instance, batch in batches]


class Scheduler:
    """The default scheduler, to which time means nothing, and whose batches are told as pairs."""

    def __init__(self, capacity: int = 1) -> None:
        self._scheduler: DefaultScheduler[str, int] = DefaultScheduler(capacity)
        self.queue = self._scheduler.queue
        self.retire = self._scheduler.retire
        self.withdraw = self._scheduler.withdraw

    def add(self, instance: str) -> List[Tuple[str, int]]:
        return pairs(self._scheduler.add(instance, 0))

    def remove(self, instance: str, unstarted: List[int]) -> List[Tuple[str, int]]:
        return pairs(self._scheduler.remove(instance, unstarted, 0))

    def enqueue(self, request: int) -> List[Tuple[str, int]]:
        return pairs(self._scheduler.enqueue(request, 0))

    def finished(self, instance: str, batches: int) -> List[Tuple[str, int]]:
        return pairs(self._scheduler.finished(instance, batches, 0))


def test_a_request_waits_for_an_instance() -> None:
    scheduler = Scheduler()
    assert scheduler.enqueue(1) == []
    assert scheduler.enqueue(2) == []
    assert scheduler.add("a") == [("a", 1), ("a", 2)]


def test_a_lone_instance_is_handed_several() -> None:
    scheduler = Scheduler()
    scheduler.add("a")
    handed = [dispatch for number in range(LOOKAHEAD + 3) for dispatch in scheduler.enqueue(number)]
    assert handed == [("a", number) for number in range(LOOKAHEAD)]
    assert scheduler.finished("a", 2) == [("a", LOOKAHEAD), ("a", LOOKAHEAD + 1)]


def test_a_queue_that_is_full() -> None:
    scheduler: DefaultScheduler[str, int] = DefaultScheduler(max_queue_size=2)
    assert [scheduler.enqueue(number, 0) for number in range(4)] == [([], ())] * 2 + [((), [(number, Reason.FULL)]) for number in (2, 3)]
    scheduler.add("a", 0)
    assert scheduler.waiting == 0  # they were handed over
    taken = [pairs(scheduler.enqueue(number, 0)) for number in range(LOOKAHEAD - 2 + 2)]
    assert [bool(dispatches) for dispatches in taken] == [True] * (LOOKAHEAD - 2) + [False] * 2
    assert scheduler.enqueue(99, 0) == ((), [(99, Reason.FULL)])
    scheduler.finished("a", 1, 0)
    assert scheduler.enqueue(100, 0) == ([], ()) and scheduler.waiting == 2
    scheduler.remove("a", [7, 8, 9], 0)
    assert scheduler.waiting == 5  # what an instance that is gone had not started is not refused


def test_several_instances_are_handed_one_each() -> None:
    scheduler = Scheduler()
    scheduler.add("a")
    scheduler.add("b")
    handed = [dispatch for number in range(4) for dispatch in scheduler.enqueue(number)]
    assert sorted(handed) == [("a", 1), ("b", 0)]
    assert scheduler.finished("a", 1) == [("a", 2)]
    assert scheduler.finished("b", 1) == [("b", 3)]


def test_the_warm_instance_is_taken_first() -> None:
    scheduler = Scheduler()
    scheduler.add("a")
    scheduler.add("b")
    ((first, _),) = scheduler.enqueue(0)
    for number in range(1, 5):
        scheduler.finished(first, 1)
        assert scheduler.enqueue(number) == [(first, number)]


def test_what_a_dead_instance_had_not_started_is_next() -> None:
    scheduler = Scheduler()
    scheduler.add("a")
    for number in range(LOOKAHEAD + 2):
        scheduler.enqueue(number)
    assert scheduler.remove("a", [1, 2, 3]) == []
    assert list(scheduler.queue) == [1, 2, 3, LOOKAHEAD, LOOKAHEAD + 1]
    assert scheduler.add("b") == [("b", number) for number in (1, 2, 3, LOOKAHEAD, LOOKAHEAD + 1)]


def test_a_survivor_takes_over() -> None:
    scheduler = Scheduler()
    scheduler.add("a")
    scheduler.add("b")
    ((first, _),) = scheduler.enqueue(0)
    ((second, _),) = scheduler.enqueue(1)
    scheduler.enqueue(2)
    assert scheduler.remove(first, [0]) == [(second, 0), (second, 2)]
    assert scheduler.finished(second, 3) == []


# ---- instances that execute several requests at a time ----


def handed_to(dispatches: List[tuple[str, int]]) -> List[str]:
    return sorted(instance for instance, _ in dispatches)


@pytest.mark.parametrize("capacity", [2, 5])
def test_each_instance_is_handed_as_many_as_it_executes(capacity: int) -> None:
    scheduler = Scheduler(capacity)
    scheduler.add("a")
    scheduler.add("b")
    handed = [dispatch for number in range(2 * capacity + 3) for dispatch in scheduler.enqueue(number)]
    assert handed_to(handed) == ["a"] * capacity + ["b"] * capacity
    assert scheduler.finished("a", 1) == [("a", 2 * capacity)]
    assert handed_to(scheduler.finished("b", 3)) == ["b"] * 2
    assert scheduler.finished("a", capacity) == []


def test_the_one_with_less_to_do_is_handed_the_next() -> None:
    scheduler = Scheduler(4)
    scheduler.add("a")
    scheduler.add("b")
    handed = [dispatch for number in range(4) for dispatch in scheduler.enqueue(number)]
    assert handed_to(handed[:2]) == handed_to(handed[2:]) == ["a", "b"]
    scheduler.finished("a", 2)
    assert [scheduler.enqueue(number) for number in (4, 5)] == [[("a", 4)], [("a", 5)]]
    assert handed_to([*scheduler.enqueue(6), *scheduler.enqueue(7)]) == ["a", "b"]


def test_a_retired_instance_gets_nothing_more() -> None:
    scheduler = Scheduler()
    for name in "ab":
        scheduler.add(name)
    assert scheduler.enqueue(1) == [("b", 1)]
    scheduler.retire("b")
    scheduler.retire("b")
    assert scheduler.enqueue(2) == [("a", 2)]
    assert scheduler.enqueue(3) == [("a", 3)]  # which is alone now, and is handed what it will have to do anyway
    assert scheduler.finished("b", 1) == []
    assert scheduler.remove("b", [0]) == [("a", 0)]


@pytest.mark.parametrize("capacity", [2, LOOKAHEAD, LOOKAHEAD + 5])
def test_a_lone_instance_is_handed_at_least_what_it_executes(capacity: int) -> None:
    scheduler = Scheduler(capacity)
    for number in range(100):
        scheduler.enqueue(number)
    at_once = max(LOOKAHEAD, capacity)
    assert scheduler.add("a") == [("a", number) for number in range(at_once)]
    assert scheduler.finished("a", 3) == [("a", at_once + number) for number in range(3)]


def test_what_a_lone_instance_was_handed_beforehand_is_its_own() -> None:
    """Another instance that comes later takes what is in the queue; the first is handed nothing before it has room again."""
    scheduler = Scheduler(2)
    scheduler.add("a")
    for number in range(LOOKAHEAD + 4):
        scheduler.enqueue(number)
    assert handed_to(scheduler.add("b")) == ["b"] * 2
    assert scheduler.finished("a", LOOKAHEAD - 2) == []
    assert handed_to(scheduler.finished("a", 1)) == ["a"]


# ---- requests that nobody wants any more ----


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_request_in_the_queue_can_be_withdrawn(which: int) -> None:
    scheduler = Scheduler()
    for number in range(3):
        scheduler.enqueue(number)
    assert scheduler.withdraw(which) is True
    assert scheduler.withdraw(which) is False, "it is no longer in it"
    assert [number for _, number in scheduler.add("a")] == [number for number in range(3) if number != which]


def test_a_request_that_was_handed_over_cannot_be_withdrawn() -> None:
    scheduler = Scheduler()
    scheduler.add("a")
    scheduler.enqueue(0)
    assert scheduler.withdraw(0) is False and scheduler.withdraw(1) is False
    assert scheduler.remove("a", [0]) == []
    assert scheduler.withdraw(0) is True, "it came back"


class Scheduling(RuleBasedStateMachine):
    """Nothing lost, nothing twice, nothing idle while something waits."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.capacity = 1
        self.running: Dict[str, List[int]] = {}
        self.waiting: List[int] = []
        self.arrived = 0
        self.names = 0

    def take(self, dispatches: List[tuple[str, int]]) -> None:
        for instance, request in dispatches:
            assert request == self.waiting.pop(0), "requests start in the order of their arrival"
            self.running[instance].append(request)

    @initialize(capacity=st.sampled_from([1, 2, 3, LOOKAHEAD + 4]))
    def choose(self, capacity: int) -> None:
        self.scheduler = Scheduler(capacity)
        self.capacity = capacity

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        assert self.scheduler.withdraw(request)
        self.waiting.remove(request)

    @rule()
    def arrive(self) -> None:
        self.waiting.append(self.arrived)
        self.arrived += 1
        self.take(self.scheduler.enqueue(self.arrived - 1))

    @rule()
    def add(self) -> None:
        name = f"i{self.names}"
        self.names += 1
        self.running[name] = []
        self.take(self.scheduler.add(name))

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, requests in self.running.items() if requests]))
        count = data.draw(st.integers(1, len(self.running[name])))
        del self.running[name][:count]
        self.take(self.scheduler.finished(name, count))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.running)))
        requests = self.running.pop(name)
        # What it had begun is lost with it; the caller fails that.
        unstarted = requests[data.draw(st.integers(0, len(requests))) :]
        self.waiting[:0] = unstarted
        self.take(self.scheduler.remove(name, unstarted))

    @invariant()
    def what_waits_is_in_the_queue(self) -> None:
        assert list(self.scheduler.queue) == self.waiting

    @invariant()
    def nobody_is_idle_while_something_waits(self) -> None:
        if self.waiting:
            assert all(len(requests) >= self.capacity for requests in self.running.values())
            if len(self.running) == 1:
                assert len(next(iter(self.running.values()))) >= max(LOOKAHEAD, self.capacity)

    @invariant()
    def nobody_has_too_many(self) -> None:
        assert all(len(requests) <= max(LOOKAHEAD, self.capacity) for requests in self.running.values())


TestScheduling = Scheduling.TestCase


@pytest.mark.parametrize("instances", [1, 2, 5])
@pytest.mark.parametrize("capacity", [1, 3])
@given(counts=st.lists(st.integers(1, 40), max_size=10))
def test_everything_is_served_once(instances: int, capacity: int, counts: List[int]) -> None:
    scheduler = Scheduler(capacity)
    for number in range(instances):
        scheduler.add(str(number))
    served: List[int] = []
    open_dispatches = []
    total = 0
    for count in counts:
        for _ in range(count):
            open_dispatches += scheduler.enqueue(total)
            total += 1
        while open_dispatches:
            instance, request = open_dispatches.pop(0)
            served.append(request)
            open_dispatches += scheduler.finished(instance, 1)
    assert served == list(range(total))
