"""Division of exported device memory: no block overlaps another, and what comes back can be had again in one piece."""

from __future__ import annotations

from typing import Dict, Tuple

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
    """Any order of taking, giving back and growing."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = DeviceArena()
        self.sizes: Dict[int, int] = {}
        self.taken: Dict[Tuple[int, int], int] = {}

    @rule(units=st.integers(1, 64))
    def grow(self, units: int) -> None:
        self.sizes[len(self.sizes)] = units * UNIT
        self.arena.add(len(self.sizes) - 1, units * UNIT)

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
