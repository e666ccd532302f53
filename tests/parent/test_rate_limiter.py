"""The rate limiter, told as events."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Counter as CounterOf
from typing import Dict, List, Mapping, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stublet.parent.scheduling.rate_limiter import Needs, RateLimiter, Resource

R = Resource("R", 0)
S = Resource("S", 0)
SHARED = Resource("R", None)


def limiter(limits: Optional[Mapping[Resource, int]] = None, **instances: Needs) -> RateLimiter[str]:
    made: RateLimiter[str] = RateLimiter((limits or {}).get)
    for name, needs in instances.items():
        assert made.admit(name, needs) == []
    return made


def test_there_is_as_much_as_one_instance_needs() -> None:
    limited = limiter(a={R: 2}, b={R: 1}, c={R: 1})
    assert limited.capacity == {R: 2}
    assert limited.ask("a") == ["a"]
    assert limited.ask("b") == [] == limited.ask("c")
    assert limited.release("a") == ["b", "c"]


def test_there_is_as_much_as_the_server_says() -> None:
    limited = limiter({R: 3}, a={R: 2}, b={R: 1}, c={R: 1})
    assert limited.ask("a") == ["a"] and limited.ask("b") == ["b"] and limited.ask("c") == []
    assert limited.release("b") == ["c"]
    assert limited.used() == {R: 3}


def test_all_that_is_needed_is_granted_at_once() -> None:
    limited = limiter(a={R: 1}, b={S: 1}, both={R: 1, S: 1})
    assert limited.ask("a") == ["a"] and limited.ask("both") == []
    assert limited.ask("b") == [], "what the one before it waits for is kept"
    assert limited.release("a") == ["both"]
    assert limited.release("both") == ["b"]


def test_who_needs_none_of_it_need_not_wait() -> None:
    limited = limiter(a={R: 1}, b={R: 1}, c={S: 1}, free={})
    assert limited.ask("a") == ["a"] and limited.ask("b") == []
    assert limited.ask("c") == ["c"] and limited.ask("free") == ["free"]


def test_devices_have_each_their_own() -> None:
    limited = limiter(a={R: 1}, b={Resource("R", 1): 1})
    assert limited.ask("a") == ["a"] and limited.ask("b") == ["b"]


def test_several_executions_of_one_instance() -> None:
    limited = limiter({R: 2}, a={R: 1}, b={R: 1})
    assert [limited.ask("a") for _ in range(4)] == [["a"], ["a"], [], []]
    assert limited.ask("b") == []
    assert limited.release("a", 2) == ["b", "a"], "it had no turn yet"
    assert limited.release("b") == ["a"]


@pytest.mark.parametrize("priority, expected", [(1, 50), (2, 33), (4, 20), (0, 50)])
def test_a_priority_of_two_gets_half_as_many_turns(priority: int, expected: int) -> None:
    limited = limiter(urgent={R: 1})
    limited.admit("other", {R: 1}, priority)
    (running,) = limited.ask("urgent")
    limited.ask("urgent")
    limited.ask("other")
    turns: CounterOf[str] = Counter()
    for _ in range(100):
        (running,) = limited.release(running)
        turns[running] += 1
        assert limited.ask(running) == []
    assert abs(turns["other"] - expected) <= 1


def test_one_that_wanted_nothing_for_long_does_not_make_the_others_wait_for_it() -> None:
    limited = limiter(busy={R: 1})
    for _ in range(100):
        assert limited.ask("busy") == ["busy"] and limited.release("busy") == []
    limited.admit("new", {R: 1})
    assert limited.ask("busy") == ["busy"] and [limited.ask(name) for name in ("busy", "new", "busy", "new")] == [[]] * 4
    assert [limited.release(name)[0] for name in ("busy", "new", "busy", "new")] == ["new", "busy", "new", "busy"]


def test_who_no_longer_wants_it_makes_room_for_others() -> None:
    limited = limiter({R: 2}, a={R: 1}, big={R: 2}, b={R: 1})
    assert limited.ask("a") == ["a"] and limited.ask("big") == [] and limited.ask("b") == []
    assert limited.withdraw("big") == ["b"]
    assert limited.withdraw("big") == [], "it had not asked for more"


def test_who_is_gone_gives_everything_back() -> None:
    limited = limiter({R: 2}, a={R: 1}, b={R: 2}, c={R: 1})
    assert limited.ask("a") == ["a"] and limited.ask("a") == ["a"]
    assert limited.ask("b") == [] == limited.ask("c")
    assert limited.dismiss("a") == ["b"]
    assert limited.dismiss("b") == ["c"]
    assert limited.dismiss("b") == [] == limited.release("b") == limited.ask("b") == limited.withdraw("b")
    assert limited.used() == {R: 1}


def test_a_new_instance_may_bring_more_and_takes_it_away_again() -> None:
    limited = limiter(a={R: 1}, b={R: 1})
    assert limited.ask("a") == ["a"] and limited.ask("b") == []
    assert limited.admit("big", {R: 2}) == ["b"]
    assert limited.dismiss("big") == []
    assert limited.ask("a") == [] == limited.release("b")
    assert limited.release("a") == ["a"]


def test_who_is_in_the_way() -> None:
    limited = limiter({R: 3, S: 1}, a={R: 1}, b={R: 1}, big={R: 3}, c={R: 1}, d={S: 1}, free={})
    assert limited.ask("a") == ["a"] and limited.ask("b") == ["b"]
    assert limited.in_the_way("c") == [] == limited.in_the_way("a") == limited.in_the_way("free") == limited.in_the_way("nobody")
    assert limited.in_the_way("big") == [["a", "b"], ["a"], ["b"]], "with either of them at work there is not enough"
    assert limited.ask("big") == [] == limited.ask("c")
    assert limited.in_the_way("c") == [["big"]], "what is left is kept for it"
    assert limited.ask("d") == ["d"] and limited.in_the_way("d") == []
    assert limited.release("a") == [] and limited.in_the_way("big") == [["b"], ["b"]]


def test_a_name_is_shared_or_not() -> None:
    text = r'^Resource "R" is present as both global and device-specific resource in the model configuration\.$'
    with pytest.raises(ValueError, match=text):
        limiter().check([{R: 1}, {SHARED: 1}])
    limited = limiter(a={R: 1})
    with pytest.raises(ValueError, match=text):
        limited.check([{SHARED: 1}])
    limited.dismiss("a")
    limited.check([{SHARED: 1}])


def test_nobody_is_admitted_who_could_never_execute() -> None:
    limiter({R: 4}).check([{R: 4}])
    with pytest.raises(
        ValueError,
        match=r'^Resource count for "R" is limited to 4 which will prevent scheduling of one or more model instances, the minimum required '
        r"count is 10$",
    ):
        limiter({R: 4}).check([{R: 10}])


NEEDS = st.dictionaries(st.sampled_from([R, S, Resource("R", 1)]), st.integers(1, 4), max_size=3)


@given(st.lists(st.tuples(NEEDS, st.integers(0, 3)), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_whoever_always_wants_to_execute_gets_its_turn_again_and_again(instances: List[Tuple[Needs, int]], chance: Random) -> None:
    limited: RateLimiter[int] = RateLimiter({}.get)
    running: List[int] = []
    for number, (needs, priority) in enumerate(instances):
        limited.admit(number, needs, priority)
    for number in range(len(instances)):
        running += limited.ask(number)
    last = dict.fromkeys(range(len(instances)), 0)
    for turn in range(200):
        done = running.pop(chance.randrange(len(running)))
        running += limited.release(done)
        running += limited.ask(done)
        for number in running:
            last[number] = turn
        assert min(last.values()) > turn - 60


class Limited(RuleBasedStateMachine):
    """Instances come, execute and go in any order."""

    @initialize(limits=st.dictionaries(st.sampled_from([R, S]), st.integers(4, 6)))
    def begin(self, limits: Dict[Resource, int]) -> None:
        self.limited: RateLimiter[int] = RateLimiter(limits.get)
        self.limits = limits
        self.needs: Dict[int, Needs] = {}
        self.running: CounterOf[int] = Counter()
        self.wanted: CounterOf[int] = Counter()
        self.made = 0

    def _granted(self, instances: List[int]) -> None:
        for instance in instances:
            assert self.wanted[instance] > 0
            self.wanted[instance] -= 1
            self.running[instance] += 1
        taken = self._taken()
        for resource in {resource for instance in instances for resource in self.needs[instance]}:
            assert taken[resource] <= self.limited.capacity[resource]

    def _taken(self) -> CounterOf[Resource]:
        taken: CounterOf[Resource] = Counter()
        for instance, count in self.running.items():
            for resource, needed in self.needs[instance].items():
                taken[resource] += count * needed
        return taken

    @rule(needs=NEEDS, priority=st.integers(0, 3))
    def admit(self, needs: Needs, priority: int) -> None:
        self.made += 1
        self.needs[self.made] = needs
        self._granted(self.limited.admit(self.made, needs, priority))

    @precondition(lambda self: self.needs)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(self.needs)))
        self.wanted[instance] += 1
        granted = self.limited.ask(instance)
        assert granted in ([], [instance])
        self._granted(granted)

    @precondition(lambda self: +self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(+self.running)))
        count = data.draw(st.integers(1, self.running[instance]))
        self.running[instance] -= count
        self._granted(self.limited.release(instance, count))

    @precondition(lambda self: +self.wanted)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(+self.wanted)))
        self.wanted[instance] -= 1
        self._granted(self.limited.withdraw(instance))

    @precondition(lambda self: self.needs)
    @rule(data=st.data())
    def dismiss(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(self.needs)))
        for counted in (self.needs, self.running, self.wanted):
            counted.pop(instance, None)
        self._granted(self.limited.dismiss(instance))

    @invariant()
    def what_is_used_is_what_those_take_who_execute(self) -> None:
        if hasattr(self, "limited"):
            assert self.limited.used() == dict(+self._taken())

    @invariant()
    def somebody_executes_if_anybody_wants_to(self) -> None:
        if hasattr(self, "limited") and +self.wanted:
            assert +self.running

    def teardown(self) -> None:
        """Everybody gets a turn, if only those who have one end it."""
        for _ in range(10_000):
            if not +self.wanted:
                break
            instance = next(iter(+self.running))
            self.running[instance] -= 1
            self._granted(self.limited.release(instance))
        else:
            raise AssertionError(f"still waiting: {+self.wanted}")


TestLimited = Limited.TestCase
