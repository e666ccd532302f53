"""Sequence batching: what holds whatever happens, in any order."""

from __future__ import annotations

from typing import Dict, Hashable, List, Optional, Set

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stublet.parent.scheduling.scheduler import Actions
from stublet.parent.sequence.batcher import Member, SequenceBatcher, Strategy
from stublet.parent.sequence.strategies import Direct, Oldest

IDLE = 1000


class Whatever(RuleBasedStateMachine):
    """Requests, instances and time, in any order."""

    strategy: Strategy
    iterative = False

    def __init__(self) -> None:
        super().__init__()
        self.members: Dict[int, Member] = {}
        self.ended: List[Hashable] = []
        self.batcher: SequenceBatcher[int, int] = SequenceBatcher(
            self.strategy, self.members.__getitem__, IDLE, self.iterative, self.ended.append
        )
        self.now = 0
        self.waiting: Set[int] = set()
        self.executing: Dict[int, Optional[List[int]]] = {}
        self.over: Set[int] = set()
        self.latest: Dict[Hashable, int] = {}
        self.given_back: Set[int] = set()
        self.instances = 0

    def did(self, actions: Actions) -> None:
        batches, refused = actions
        for instance, batch in batches:
            assert self.executing[instance] is None, "one batch at a time"
            assert batch and set(batch) <= self.waiting
            sequences = [self.members[one].sequence for one in batch]
            assert len(set(sequences)) == len(batch) <= self.strategy.places, "a sequence has one request in a batch"
            assert len({self.members[one].shapes for one in batch}) == 1
            for one in batch:
                assert one in self.given_back or self.latest.get(self.members[one].sequence, -1) < one, "in order"
                self.latest[self.members[one].sequence] = one
            self.waiting -= set(batch)
            self.executing[instance] = list(batch)
        for request, _ in refused:
            assert request not in self.over
            self.waiting.discard(request)
            self.over.add(request)

    def look(self) -> None:
        if (due := self.batcher.due) is not None and due <= self.now:
            self.did(self.batcher.tick(self.now))

    @rule(
        sequence=st.sampled_from([1, 2, 3, 4, "1", "x"]), start=st.booleans(), end=st.booleans(), timeout=st.sampled_from([0, 30]),
        width=st.integers(1, 2),
    )  # fmt: skip
    def arrive(self, sequence: Hashable, start: bool, end: bool, timeout: int, width: int) -> None:
        request = len(self.members)
        self.members[request] = Member(sequence, start, end, timeout, ((0, (width,)),))
        self.waiting.add(request)
        self.did(self.batcher.enqueue(request, self.now))
        self.look()

    @rule(ns=st.sampled_from([1, 40, IDLE]))
    def wait(self, ns: int) -> None:
        end = self.now + ns
        while (due := self.batcher.due) is not None and due <= end:
            self.now = max(self.now, due)
            self.did(self.batcher.tick(self.now))
        self.now = end

    @precondition(lambda self: len(self.executing) < 3)
    @rule()
    def instance_comes(self) -> None:
        self.instances += 1
        self.executing[self.instances] = None
        self.did(self.batcher.add(self.instances, self.now))

    @precondition(lambda self: any(self.executing.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from([one for one, batch in self.executing.items() if batch]))
        batch = self.executing[instance]
        assert batch is not None
        for request in batch:
            if self.iterative and data.draw(st.booleans()) and self.batcher.again(request, self.now) is None:
                self.members[request] = self.members[request]._replace(start=False)
                self.waiting.add(request)
                self.given_back.add(request)
                continue
            self.over.add(request)
        self.executing[instance] = None
        self.did(self.batcher.finished(instance, 1, self.now))

    @precondition(lambda self: self.executing)
    @rule(data=st.data(), started=st.booleans())
    def instance_goes(self, data: st.DataObject, started: bool) -> None:
        instance = data.draw(st.sampled_from(sorted(self.executing)))
        had = self.executing.pop(instance) or []
        if started:
            self.over.update(had)
            had = []
        self.waiting |= set(had)
        self.did(self.batcher.remove(instance, had, self.now))

    @precondition(lambda self: self.executing)
    @rule(data=st.data())
    def instance_retires(self, data: st.DataObject) -> None:
        self.batcher.retire(data.draw(st.sampled_from(sorted(self.executing))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.batcher.withdraw(request)
        self.waiting.discard(request)
        self.over.add(request)
        self.look()

    @invariant()
    def nothing_is_lost(self) -> None:
        executing = {request for batch in self.executing.values() for request in batch or ()}
        assert self.batcher.waiting == len(self.waiting)
        assert not executing & self.waiting and not executing & self.over and not self.waiting & self.over
        assert executing | self.waiting | self.over == set(self.members)

    @invariant()
    def places_are_used(self) -> None:
        for instance in self.executing:
            seats = self.batcher._instances[instance]
            assert sorted(seats.free) == [place for place, one in enumerate(seats.places) if one is None]
        if any(seats.free and not seats.retired for seats in self.batcher._instances.values()):
            assert not self.batcher._backlog, "a sequence waits though there is a place"

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        for seats in self.batcher._instances.values():
            if seats.heads and not seats.batch:
                assert self.batcher.due is not None, "an instance is free, and nobody will look again"


class WhateverDirect(Whatever):
    strategy = Direct(2)


class WhateverHeld(Whatever):
    strategy = Direct(3, 20, 0.6)


class WhateverOldest(Whatever):
    strategy = Oldest(3, 2, (2,), 20)


class WhateverIterative(Whatever):
    strategy = Direct(2)
    iterative = True


TestDirect = WhateverDirect.TestCase
TestHeld = WhateverHeld.TestCase
TestOldest = WhateverOldest.TestCase
TestIterative = WhateverIterative.TestCase
