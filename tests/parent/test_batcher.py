"""The rules of dynamic batching, each as a story told to a clock that only the test moves (spec 5.4), and what holds whatever happens."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stublet.parent.scheduling.batcher import Arrival, Batching, DynamicBatcher, QueuePolicy
from stublet.parent.scheduling.scheduler import Actions, Reason

A, B = "instance a", "instance b"
Batches = List[Tuple[str, List[Any]]]


class Story:
    """A batcher, and what it has had done."""

    def __init__(self, *instances: str, capacity: int = 1, **settings: Any) -> None:
        self.batcher: DynamicBatcher[str, Any] = DynamicBatcher(
            Batching(**{"max_size": 8, **settings}), lambda request: self.arrivals[request], capacity, lambda request: self.times[request]
        )
        self.arrivals: Dict[Any, Arrival] = {}
        self.times: Dict[Any, int] = {}
        self.now = 0
        self.batches: Batches = []
        self.refused: List[Tuple[Any, Reason]] = []
        for instance in instances:
            self._did(self.batcher.add(instance, self.now))

    def _did(self, actions: Actions) -> None:
        batches, refused = actions
        self.batches += batches
        self.refused += refused

    def arrive(self, *requests: Any, **arrival: Any) -> Story:
        """Requests come at the same moment."""
        for request in requests:
            self.arrivals[request] = Arrival(**arrival)
            self.times[request] = self.now
            self._did(self.batcher.enqueue(request, self.now))
        return self.look()

    def look(self) -> Story:
        """Whoever keeps the clock looks whether it is time."""
        if (due := self.batcher.due) is not None and due <= self.now:
            self._did(self.batcher.tick(self.now))
        return self

    def finish(self, instance: str = A, batches: int = 1) -> Story:
        self._did(self.batcher.finished(instance, batches, self.now))
        return self

    def wait(self, ns: int) -> Story:
        """Time passes, and whoever keeps the clock wakes when it is due."""
        end = self.now + ns
        while (due := self.batcher.due) is not None and due <= end:
            self.now = max(self.now, due)
            self._did(self.batcher.tick(self.now))
            assert self.batcher.due is None or self.batcher.due > self.now, "it would have to wake at once again"
        self.now = end
        return self

    @property
    def sizes(self) -> List[int]:
        return [len(batch) for _, batch in self.batches]

    def members(self) -> List[List[Any]]:
        return [batch for _, batch in self.batches]


def test_one_that_finds_a_free_instance_is_not_held() -> None:
    assert Story(A).arrive(1).batches == [(A, [1])]


def test_those_that_come_at_the_same_moment_are_executed_together() -> None:
    assert Story(A).arrive(1, 2, 3).batches == [(A, [1, 2, 3])]


def test_those_that_come_meanwhile_are_executed_together() -> None:
    story = Story(A).arrive(1).arrive(2, 3, 4)
    assert story.batches == [(A, [1])]
    assert story.finish().batches[1:] == [(A, [2, 3, 4])]


def test_a_batch_is_no_larger_than_may_be() -> None:
    story = Story(A, max_size=4).arrive(0).arrive(*range(1, 10))
    story.finish()
    assert story.sizes[:2] == [1, 4] and story.members()[1] == [1, 2, 3, 4]


def test_items_count_and_requests_are_not_split() -> None:
    story = Story(A).arrive(0).arrive(1, size=3).arrive(2, size=4).arrive(3, size=2).arrive(4, size=1)
    story.finish().finish()
    assert story.members() == [[0], [1, 2], [3, 4]]


def test_one_that_is_as_large_as_a_batch_may_be() -> None:
    story = Story(A).arrive(0).arrive(1, size=8).arrive(2)
    assert story.finish().members()[1] == [1]


def test_a_lone_instance_gets_a_batch_that_cannot_grow_while_it_executes() -> None:
    story = Story(A, max_size=2, default_policy=QueuePolicy(max_size=100)).arrive(0).arrive(1)
    assert story.batches == [(A, [0])]
    assert story.arrive(2).batches[1:] == [(A, [1, 2])]
    assert story.arrive(3, 4).sizes == [1, 2], "but no more than one ahead"
    assert story.finish().batches[2:] == [(A, [3, 4])]


def test_of_several_instances_none_gets_one_ahead() -> None:
    story = Story(A, B, max_size=2).arrive(0).arrive(1)
    assert sorted(story.batches) == [(A, [1]), (B, [0])]
    assert story.arrive(2, 3, 4).sizes == [1, 1]
    assert story.finish(A).batches[2:] == [(A, [2, 3])]


def test_the_instance_that_was_used_last_is_taken_first() -> None:
    story = Story(A, B).arrive(0).finish(B).arrive(1).finish(B)
    assert [instance for instance, _ in story.batches] == [B, B]


def test_several_batches_at_a_time() -> None:
    story = Story(A, capacity=2).arrive(0).arrive(1).arrive(2, 3)
    assert story.members() == [[0], [1]]
    assert story.finish().members()[2:] == [[2, 3]]


# ---- the delay ----


def test_requests_are_held_for_company() -> None:
    story = Story(A, delay_ns=100).arrive(1)
    assert story.batches == [] and story.batcher.due == 100
    story.wait(50).arrive(2).wait(49)
    assert story.batches == []
    assert story.wait(1).members() == [[1, 2]], "the oldest decides"


def test_a_batch_that_cannot_grow_is_not_held() -> None:
    assert Story(A, max_size=2, delay_ns=100).arrive(1, 2).members() == [[1, 2]]
    assert Story(A, delay_ns=100).arrive(1, size=5).arrive(2, size=4).members() == [[1]]
    assert Story(A, delay_ns=100).arrive(1, shapes=((0, (2,)),)).arrive(2, shapes=((0, (3,)),)).members() == [[1]]


def test_what_waited_for_an_instance_need_not_wait_again() -> None:
    story = Story(A, delay_ns=100).arrive(0).wait(100).arrive(1).wait(150)
    assert story.finish().members() == [[0], [1]]


# ---- preferred sizes ----


def test_a_preferred_size_goes_at_once() -> None:
    story = Story(A, preferred=(2, 4), delay_ns=100).arrive(1)
    assert story.batches == []
    assert story.arrive(2).members() == [[1, 2]]


def test_the_largest_preferred_size_that_can_be_reached() -> None:
    story = Story(A, preferred=(2, 4)).arrive(0).arrive(*range(1, 8))
    story.finish().finish().finish()
    assert story.members() == [[0], [1, 2, 3, 4], [5, 6], [7]]


def test_no_preferred_size_can_be_reached() -> None:
    story = Story(A, preferred=(4,)).arrive(0).arrive(1, size=3).arrive(2, size=3)
    assert story.finish().members()[1] == [1], "past the largest of them, the rest comes later"


def test_when_the_delay_is_over_as_many_go_as_fit() -> None:
    story = Story(A, B, preferred=(4,), delay_ns=100).arrive(*"abcd").arrive(*"efgh")
    assert story.members() == [[*"abcd"], [*"efgh"]]
    story.arrive(1, 2, 3).wait(10).arrive(4, 5, 6).wait(100)
    assert story.finish().members()[2:] == [[1, 2, 3, 4, 5, 6]]


# ---- shapes ----


def test_only_requests_of_one_shape_go_together_in_the_order_of_arrival() -> None:
    story = Story(A).arrive(0)
    for request, width in enumerate([2, 2, 3, 2], 1):
        story.arrive(request, shapes=((0, (width,)),))
    story.finish().finish().finish()
    assert story.members() == [[0], [1, 2], [3], [4]]


def test_an_input_that_some_do_not_have_keeps_nobody_apart() -> None:
    story = Story(A).arrive(0)
    story.arrive(1, shapes=((0, (2,)), (1, (5,)))).arrive(2, shapes=((0, (2,)),)).arrive(3, shapes=((0, (2,)), (1, (6,))))
    story.finish().finish()
    assert story.members() == [[0], [1, 2], [3]]


# ---- priorities ----


def test_higher_priorities_go_first() -> None:
    story = Story(A, levels=3, default_level=2, max_size=2).arrive(0)
    story.arrive("low", priority=3).arrive("none").arrive("high", priority=1).arrive("beyond", priority=9)
    story.finish().finish()
    assert story.members() == [[0], ["high", "none"], ["beyond", "low"]]


def test_with_priorities_nothing_is_handed_ahead() -> None:
    story = Story(A, levels=2, max_size=2).arrive(0).arrive(1, 2, priority=2).arrive(3, 4, priority=1)
    assert story.sizes == [1] and story.finish().members()[1] == [3, 4]


# ---- queue policies ----


def test_a_queue_that_is_full() -> None:
    story = Story(A, default_policy=QueuePolicy(max_size=2)).arrive(0).arrive(1, 2, 3)
    assert story.refused == [(3, Reason.FULL)]
    assert story.finish().members() == [[0], [1, 2]]
    assert story.arrive(4).finish().members()[2:] == [[4]]


def test_each_level_has_a_queue_of_its_own() -> None:
    story = (
        Story(A, levels=2, policies={1: QueuePolicy(max_size=1)}).arrive(0, priority=1).arrive(1, 2, priority=1).arrive(3, 4, 5, priority=2)
    )
    assert story.refused == [(2, Reason.FULL)]


def test_one_that_waited_for_too_long_is_rejected() -> None:
    story = Story(A, default_policy=QueuePolicy(timeout_ns=100)).arrive(0).arrive(1).wait(60).arrive(2).wait(40)
    assert story.refused == [(1, Reason.EXPIRED)]
    assert story.finish().members() == [[0], [2]]
    assert story.wait(1000).refused == [(1, Reason.EXPIRED)], "what is executed does not wait"


def test_or_comes_after_all_others() -> None:
    story = Story(A, max_size=2, levels=2, default_policy=QueuePolicy(timeout_ns=100, delays=True)).arrive(0)
    story.arrive("late", "later").wait(100).arrive("new", "newer").arrive("other", priority=2)
    story.finish().finish().finish()
    assert story.members() == [[0], ["new", "newer"], ["late", "later"], ["other"]] and not story.refused


@pytest.mark.parametrize(
    "policy, own, expires",
    [
        (QueuePolicy(timeout_ns=100), 10, 100),
        (QueuePolicy(timeout_ns=100, may_override=True), 10, 10),
        (QueuePolicy(timeout_ns=100, may_override=True), 1000, 100),
        (QueuePolicy(timeout_ns=100, may_override=True), 0, 100),
        (QueuePolicy(may_override=True), 10, 10),
        (QueuePolicy(), 10, None),
    ],
)
def test_a_request_may_say_how_long_it_waits(policy: QueuePolicy, own: int, expires: Optional[int]) -> None:
    story = Story(A, default_policy=policy).arrive(0).arrive(1, timeout_ns=own)
    assert story.batcher.due == expires
    story.wait(2000)
    assert story.refused == ([] if expires is None else [(1, Reason.EXPIRED)])


# ---- coming and going ----


def test_withdrawn_ones_are_not_executed() -> None:
    story = Story(A, default_policy=QueuePolicy(max_size=3, timeout_ns=100)).arrive(0).arrive(1, 2, 3)
    assert story.batcher.withdraw(2) and not story.batcher.withdraw(2) and not story.batcher.withdraw(0)
    assert story.arrive(4).finish().members() == [[0], [1, 3, 4]]
    assert not story.wait(1000).refused


def test_without_an_instance_they_wait() -> None:
    story = Story().arrive(1, 2)
    assert story.batches == [] and story.batcher.waiting == 2
    story._did(story.batcher.add(A, story.now))
    assert story.batches == [(A, [1, 2])]


def test_what_an_instance_that_is_gone_had_not_begun_comes_first() -> None:
    story = Story(A, B, max_size=2).arrive(0).arrive(1).arrive(2)
    dead = next(instance for instance, batch in story.batches if batch == [1])
    story._did(story.batcher.remove(dead, [1], story.now))
    assert story.finish(A if dead == B else B).members()[2:] == [[1, 2]]


def test_what_it_had_not_begun_waits_no_longer_than_it_would_have() -> None:
    story = Story(A, default_policy=QueuePolicy(timeout_ns=100)).arrive(0)
    assert story.sizes == [1]
    story.now = 60
    story._did(story.batcher.remove(A, [0], story.now))
    assert story.batcher.due == 100
    assert story.wait(39).refused == [] and story.wait(1).refused == [(0, Reason.EXPIRED)]


def test_what_waits_while_nobody_serves_goes_to_the_first_who_does() -> None:
    story = Story(max_size=2, default_policy=QueuePolicy(max_size=3)).arrive(0).arrive(1).arrive(2).arrive(3)
    assert story.batches == [] and story.refused == [(3, Reason.FULL)]
    story._did(story.batcher.add(A, story.now))
    assert story.look().members() == [[0, 1]]


def test_one_that_is_retired_gets_no_more() -> None:
    story = Story(A, B).arrive(0).arrive(1)
    story.batcher.retire(A)
    assert story.arrive(2).finish(A).sizes == [1, 1]
    assert story.finish(B).batches[2:] == [(B, [2])]


def test_all_can_be_dropped() -> None:
    story = Story(A, levels=2, default_policy=QueuePolicy(timeout_ns=10)).arrive(0).arrive(1, priority=2).arrive(2, priority=1)
    assert story.batcher.drop_all() == [2, 1] and story.batcher.waiting == 0 and story.batcher.due is None
    assert story.finish().sizes == [1]


class Whatever(RuleBasedStateMachine):
    """Requests come and go, instances live and die, time passes: none is lost, none is executed twice, and the limits hold."""

    def __init__(self) -> None:
        super().__init__()
        self.batching = Batching(
            max_size=6, preferred=(2, 4), delay_ns=50, levels=2, default_level=2,
            policies={1: QueuePolicy(max_size=5, timeout_ns=200, delays=True), 2: QueuePolicy(timeout_ns=120, may_override=True)},
        )  # fmt: skip
        self.batcher: DynamicBatcher[int, int] = DynamicBatcher(self.batching, lambda request: self.arrivals[request])
        self.now = 0
        self.arrivals: Dict[int, Arrival] = {}
        self.waiting: Set[int] = set()
        self.executing: Dict[int, List[List[int]]] = {}
        self.over: Set[int] = set()
        self.instances = 0

    def did(self, actions: Actions) -> None:
        batches, refused = actions
        for instance, batch in batches:
            assert set(batch) <= self.waiting and len(set(batch)) == len(batch)
            assert 0 < sum(self.arrivals[one].size for one in batch) <= self.batching.max_size
            shapes = {self.arrivals[one].shapes for one in batch}
            assert len(shapes) == 1
            for level in (1, 2):
                same = [one for one in batch if self.level(one) == level]
                if not self.batching.policies[level].delays:
                    assert same == sorted(same), "first come, first served"
            self.waiting -= set(batch)
            self.executing[instance].append(batch)
            assert len(self.executing[instance]) == 1
        for request, _ in refused:
            assert request not in self.over
            self.waiting.discard(request)
            self.over.add(request)

    def level(self, request: int) -> int:
        return self.arrivals[request].priority or 2

    @rule(
        size=st.integers(1, 6), width=st.integers(1, 2), priority=st.integers(0, 2), timeout=st.sampled_from([0, 10, 1000])
    )  # fmt: skip
    def arrive(self, size: int, width: int, priority: int, timeout: int) -> None:
        request = len(self.arrivals)
        self.arrivals[request] = Arrival(size, ((0, (width,)),), priority, timeout)
        self.waiting.add(request)
        self.did(self.batcher.enqueue(request, self.now))
        self.look()

    def look(self) -> None:
        if (due := self.batcher.due) is not None and due <= self.now:
            self.did(self.batcher.tick(self.now))

    @rule(ns=st.integers(1, 100))
    def wait(self, ns: int) -> None:
        end = self.now + ns
        while (due := self.batcher.due) is not None and due <= end:
            self.now = max(self.now, due)
            self.did(self.batcher.tick(self.now))
        self.now = end

    @rule()
    def instance_comes(self) -> None:
        self.instances += 1
        self.executing[self.instances] = []
        self.did(self.batcher.add(self.instances, self.now))

    @precondition(lambda self: any(self.executing.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from([one for one, batches in self.executing.items() if batches]))
        self.over.update(self.executing[instance].pop())
        self.did(self.batcher.finished(instance, 1, self.now))

    @precondition(lambda self: self.executing)
    @rule(data=st.data(), started=st.booleans())
    def instance_goes(self, data: st.DataObject, started: bool) -> None:
        instance = data.draw(st.sampled_from(sorted(self.executing)))
        batches = self.executing.pop(instance)
        had = [request for batch in batches for request in batch]
        if started:
            self.over.update(had)
            had = []
        self.waiting |= set(had)
        self.did(self.batcher.remove(instance, had, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.batcher.withdraw(request)
        self.waiting.discard(request)
        self.over.add(request)

    @invariant()
    def nothing_is_lost(self) -> None:
        executing = {request for batches in self.executing.values() for batch in batches for request in batch}
        assert self.batcher.waiting == len(self.waiting)
        assert not executing & self.waiting and not executing & self.over and not self.waiting & self.over
        assert executing | self.waiting | self.over == set(self.arrivals)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        idle = any(not batches for batches in self.executing.values())
        if idle and self.waiting:
            assert self.batcher.due is not None, "an instance is free, and nobody will look again"


TestWhatever = Whatever.TestCase


def test_the_next_batch_of_ten_thousand(sizes: Sequence[int] = (1, 2, 3)) -> None:
    story = Story(A, max_size=64).arrive(-1).arrive(*range(10_000))
    while story.batcher.waiting:
        story.finish()
    assert [one for batch in story.members()[1:] for one in batch] == list(range(10_000))
