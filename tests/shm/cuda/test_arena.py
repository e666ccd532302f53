"""Division of exported device memory: no block overlaps another, and what comes back can be had again in one piece."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stublet.shm.cuda.arena import GRANULE, UNIT, DeviceArena, in_units, segment_bytes


@given(st.integers(0, 1 << 40), st.sampled_from([1, GRANULE, 64 << 20]))
def test_a_segment_holds_its_block_and_shares_no_page_of_the_gpu(nbytes: int, quantum: int) -> None:
    size = segment_bytes(nbytes, quantum)
    assert size % GRANULE == 0 and size >= max(nbytes, quantum, 1)
    assert size - max(nbytes, quantum) < GRANULE + UNIT


def test_without_room_there_is_no_block() -> None:
    arena = DeviceArena()
    assert arena.take(1) is None
    arena.add(7, GRANULE)
    assert arena.take(GRANULE + 1) is None
    assert arena.take(GRANULE) == (7, 0) and arena.take(0) is None


def test_nothing_takes_a_place_of_its_own() -> None:
    arena = DeviceArena()
    arena.add(1, GRANULE)
    assert {arena.take(0), arena.take(0)} == {(1, 0), (1, UNIT)}


@pytest.mark.parametrize("place", [(1, UNIT), (2, 0)])
def test_what_is_not_taken_cannot_be_given_back(place: Tuple[int, int]) -> None:
    arena = DeviceArena()
    arena.add(1, GRANULE)
    arena.take(UNIT)
    with pytest.raises(KeyError):
        arena.give(place)
    arena.give((1, 0))
    with pytest.raises(KeyError):
        arena.give((1, 0))


class Arenas(RuleBasedStateMachine):
    """Any order of taking, giving back, growing and dropping."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = DeviceArena()
        self.made = 0
        self.sizes: Dict[int, int] = {}
        self.taken: Dict[Tuple[int, int], int] = {}

    @rule(units=st.integers(1, 64))
    def grow(self, units: int) -> None:
        self.made += 1
        self.sizes[self.made] = units * UNIT
        self.arena.add(self.made, units * UNIT)

    @rule(nbytes=st.integers(0, 20 * UNIT))
    def take(self, nbytes: int) -> None:
        place = self.arena.take(nbytes)
        if place is not None:
            assert place not in self.taken
            self.taken[place] = in_units(nbytes)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        if self.taken:
            place = data.draw(st.sampled_from(sorted(self.taken)))
            del self.taken[place]
            self.arena.give(place)

    @rule(units=st.none() | st.integers(0, 200))
    def drop(self, units: Optional[int]) -> None:
        for segment in self.arena.shed() if units is None else self.arena.make_room(units * UNIT):
            assert segment in self.sizes and all(taken != segment for taken, _ in self.taken)
            del self.sizes[segment]

    @invariant()
    def blocks_lie_apart_and_inside(self) -> None:
        end = (-1, 0)
        for (segment, offset), size in sorted(self.taken.items()):
            assert (segment, offset) >= end and offset + size <= self.sizes[segment] and offset % UNIT == 0
            end = (segment, offset + size)
        assert self.arena.taken == sum(self.taken.values()) and self.arena.size == sum(self.sizes.values())
        assert all(place in self.arena for place in self.taken)

    def teardown(self) -> None:
        for place in self.taken:
            self.arena.give(place)
        # Whatever the order was, every segment is whole again.
        assert sorted(filter(None, (self.arena.take(size) for size in sorted(self.sizes.values(), reverse=True)))) == [
            (segment, 0) for segment in self.sizes
        ]


TestArenas = Arenas.TestCase


def test_a_segment_is_dropped_when_nothing_lay_in_it_between_two_looks() -> None:
    arena = DeviceArena()
    for segment in (1, 2, 3):
        arena.add(segment, GRANULE)
    kept, passing = arena.take(GRANULE), arena.take(GRANULE)
    assert kept == (1, 0) and passing == (2, 0)
    assert arena.shed() == [], "the first look"
    arena.give(passing)
    assert arena.shed() == [3], "in the second something lay until just now"
    arena.give(arena.take(GRANULE) or kept)
    assert arena.shed() == [], "in the second something lay since"
    assert arena.shed() == [2] and arena.size == GRANULE
    arena.give(kept)
    assert arena.shed() == [] and arena.shed() == [1] and arena.size == 0
    assert arena.take(0) is None


@pytest.mark.parametrize(
    "nbytes, dropped", [(0, []), (1, [3]), (4 * GRANULE, [3]), (5 * GRANULE, [3, 2]), (7 * GRANULE, [3, 2, 4]), (8 * GRANULE, [])]
)
def test_room_is_made_by_the_largest_and_not_at_all_if_it_would_not_do(nbytes: int, dropped: List[int]) -> None:
    arena = DeviceArena()
    arena.add(1, 8 * GRANULE)
    assert arena.take(UNIT) == (1, 0), "which is in use"
    for segment, granules in ((2, 2), (3, 4), (4, 1)):
        arena.add(segment, granules * GRANULE)
    assert arena.make_room(nbytes) == dropped
    assert arena.size == (15 - sum({2: 2, 3: 4, 4: 1}[segment] for segment in dropped)) * GRANULE
