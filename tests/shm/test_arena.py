"""Arenas: blocks are the holder's alone, keep their contents, waste little, and come back warm."""

from __future__ import annotations

from typing import Dict, Iterator, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from stublet.shm.arena import ALIGNMENT, LARGE_BYTES, Arena, Block, aligned, size_class
from stublet.shm.errors import OutOfSharedMemory
from stublet.shm.segment import PAGE, Segment

QUANTUM = 16 << 10


class Segments:
    """Supplies segments, each with an id of its own."""

    def __init__(self) -> None:
        self.made: List[Segment] = []

    def make(self, nbytes: int) -> Segment:
        segment = Segment.create(len(self.made), nbytes)
        segment.close()
        self.made.append(segment)
        return segment


@pytest.fixture
def arena() -> Iterator[Arena]:
    yield Arena(Segments().make, QUANTUM)


# ---- size classes ----


@given(st.integers(0, 1 << 40))
def test_a_class_holds_what_is_asked_and_wastes_at_most_a_quarter(nbytes: int) -> None:
    size = size_class(nbytes)
    assert size >= max(nbytes, 1)
    assert size % ALIGNMENT == 0
    assert size_class(size) == size, "a class is its own class"
    assert size - nbytes <= size / 4 if nbytes > 512 else size - nbytes <= ALIGNMENT
    assert size_class(nbytes + 1) >= size


def test_the_first_classes_are_those_of_the_docstring() -> None:
    assert sorted({size_class(n) for n in range(641)}) == [64, 128, 192, 256, 320, 384, 448, 512, 640]


@given(st.integers(0, 1 << 40))
def test_aligned(nbytes: int) -> None:
    assert 0 <= aligned(nbytes) - nbytes < ALIGNMENT and aligned(nbytes) % ALIGNMENT == 0


# ---- life of blocks ----


class ArenaMachine(RuleBasedStateMachine):
    """One arena, its blocks, and what was written to them."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.segments = Segments()
        self.unasked = 0
        self.arena = Arena(self.grow, QUANTUM)
        self.marks: Dict[Block, int] = {}
        self.freed: List[Block] = []
        self.writes = 0

    def grow(self, nbytes: int) -> Segment:
        """As in a stub, which may be sent other segments before the one that it asked for."""
        for _ in range(self.unasked):
            self.arena.add(self.segments.make(4096))
        self.unasked = 0
        return self.segments.make(nbytes)

    @rule(target=held, nbytes=st.one_of(st.integers(0, 1024), st.integers(0, 3 * QUANTUM), st.integers(LARGE_BYTES, 3 * LARGE_BYTES)))
    def allocate(self, nbytes: int) -> Block:
        block = self.arena.allocate(nbytes)
        assert block.size >= nbytes and block.offset % ALIGNMENT == 0 and block.holders == 1
        if nbytes >= LARGE_BYTES:
            assert block.offset % PAGE == 0 and block.size % PAGE == 0, "it shares no page with another"
        assert block.offset + block.size <= block.segment.size
        assert block not in self.marks, "handed out twice"
        self.writes += 1
        self.marks[block] = self.writes % 251
        block.array()[:] = self.marks[block]
        self.freed = [free for free in self.freed if free is not block]
        return block

    @rule(block=held)
    def retain(self, block: Block) -> None:
        if block in self.marks:
            block.retain()

    @rule(block=held, late=st.booleans())
    def release(self, block: Block, late: bool) -> None:
        if block not in self.marks:
            return
        if block.holders == 1:
            del self.marks[block]
            self.freed.append(block)
        if late:
            self.arena.dropped.append(block)
            self.arena.collect()
        else:
            block.release()

    @rule(count=st.integers(1, 3))
    def announce(self, count: int) -> None:
        """The next growth brings segments that nobody asked for."""
        self.unasked = count

    @rule()
    def add(self) -> None:
        self.arena.add(self.segments.make(QUANTUM))

    @rule(keep=st.sampled_from([0, QUANTUM, 10 * QUANTUM]), at_once=st.booleans())
    def shed(self, keep: int, at_once: bool) -> None:
        before = self.arena.size
        dropped = self.arena.shed(keep, at_once)
        gone = {segment.id for segment in dropped}
        assert not gone & {block.segment.id for block in self.marks}
        assert self.arena.size == before - sum(segment.size for segment in dropped)
        assert not dropped or self.arena.size >= keep

    @invariant()
    def blocks_do_not_overlap(self) -> None:
        end, segment = 0, -1
        for block in sorted(self.marks, key=lambda block: block.key):
            if block.segment.id != segment:
                end, segment = 0, block.segment.id
            assert block.offset >= end, f"{block.key} begins before {end}"
            end = block.offset + block.size

    @invariant()
    def contents_survive(self) -> None:
        for block, mark in self.marks.items():
            assert (block.array() == mark).all()

    @invariant()
    def only_live_blocks_are_found(self) -> None:
        assert all(self.arena.find(block.key) is block for block in self.marks)
        assert all(self.arena.find(block.key) is None for block in self.freed)
        assert self.arena.find((len(self.segments.made), 0)) is None
        assert self.arena.find((0, 1)) is None


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_freed_blocks_come_back_last_first(arena: Arena) -> None:
    blocks = [arena.allocate(1000) for _ in range(4)]
    for block in blocks:
        block.release()
    assert [arena.allocate(1000) for _ in range(4)] == blocks[::-1]


def test_a_block_comes_back_when_its_last_holder_lets_go(arena: Arena) -> None:
    block = arena.allocate(64)
    block.retain()
    block.release()
    assert arena.find(block.key) is block and arena.allocate(64) is not block
    block.release()
    assert arena.find(block.key) is None and arena.allocate(64) is block


def test_dropped_blocks_are_collected_before_memory_is_sought(arena: Arena) -> None:
    block = arena.allocate(64)
    arena.dropped.append(block)
    assert arena.find(block.key) is block
    assert arena.allocate(64) is block


def test_a_warm_block_of_a_near_class_is_better_than_fresh_memory(arena: Arena) -> None:
    near, far = arena.allocate(2048), arena.allocate(4096)
    near.release()
    far.release()
    assert arena.allocate(1100) is near
    assert arena.allocate(1100) not in (near, far), "the class of 4,096 is more than four classes away"
    near.release()
    assert arena.allocate(2048) is near, "it kept its class"


def test_blocks_are_carved_from_one_segment_until_it_is_full() -> None:
    segments = Segments()
    arena = Arena(segments.make, QUANTUM)
    blocks = [arena.allocate(4096) for _ in range(5)]
    assert [block.key for block in blocks] == [(0, 0), (0, 4096), (0, 8192), (0, 12288), (1, 0)]
    big = arena.allocate(QUANTUM + 1)
    assert big.segment.id == 2 and big.size == size_class(QUANTUM + 1)
    assert arena.allocate(4096).key == (1, 4096), "what is left of a segment is still used"


def test_a_segment_goes_when_nothing_of_it_was_used_between_two_looks() -> None:
    segments = Segments()
    arena = Arena(segments.make, QUANTUM)
    blocks = [arena.allocate(QUANTUM) for _ in range(3)]
    for block in blocks[1:]:
        block.release()
    assert arena.shed(0) == [], "the first look"
    again = arena.allocate(QUANTUM)
    assert again is blocks[2]
    again.release()
    assert arena.shed(0) == [segments.made[1]], "the other was used in between"
    assert (arena.size, arena.free_bytes()) == (2 * QUANTUM, QUANTUM)
    assert arena.shed(0) == [segments.made[2]]
    assert arena.find(blocks[0].key) is blocks[0] and arena.size == QUANTUM
    blocks[0].release()
    assert arena.allocate(QUANTUM) is blocks[0]


def test_so_much_is_kept() -> None:
    segments = Segments()
    arena = Arena(segments.make, QUANTUM)
    for block in [arena.allocate(QUANTUM) for _ in range(4)]:
        block.release()
    assert len(arena.shed(3 * QUANTUM, at_once=True)) == 1
    assert arena.shed(3 * QUANTUM, at_once=True) == []
    assert len(arena.shed(0, at_once=True)) == 3
    assert (arena.size, arena.free_bytes()) == (0, 0)
    assert arena.allocate(100).segment is segments.made[4], "it goes on"


def test_the_small_ones_are_kept() -> None:
    """Also while the large ones are in use, which go when they are not."""
    segments = Segments()
    arena = Arena(segments.make, QUANTUM)
    small, large, middle = [arena.allocate(count * QUANTUM) for count in (1, 4, 2)]
    small.release()
    middle.release()
    assert arena.shed(QUANTUM, at_once=True) == [segments.made[2]]
    large.release()
    assert arena.shed(QUANTUM, at_once=True) == [segments.made[1]]
    assert arena.shed(QUANTUM, at_once=True) == []


def test_what_was_added_and_never_used_goes_too() -> None:
    segments = Segments()
    arena = Arena(segments.make, QUANTUM)
    arena.add(segments.make(QUANTUM))
    assert arena.shed(0) == [] and arena.shed(0) == segments.made


def test_large_blocks_begin_on_a_page(arena: Arena) -> None:
    segments = Segments()
    arena = Arena(segments.make, 1 << 20)
    small, large, behind = arena.allocate(64), arena.allocate(LARGE_BYTES), arena.allocate(64)
    assert (small.offset, large.offset, behind.offset) == (0, PAGE, PAGE + LARGE_BYTES)
    assert arena.allocate(LARGE_BYTES - 8192).offset % PAGE == 64, "this one is not large"


def test_an_arena_that_cannot_grow_says_so_and_goes_on() -> None:
    def grow(nbytes: int) -> Segment:
        raise OutOfSharedMemory(f"no {nbytes} bytes")

    arena = Arena(grow, QUANTUM)
    segment = Segments().make(4096)
    arena.add(segment)
    block = arena.allocate(4096)
    with pytest.raises(OutOfSharedMemory, match=f"no {QUANTUM} bytes"):
        arena.allocate(1)
    block.release()
    assert arena.allocate(4096) is block


@pytest.mark.parametrize("returned", [True, False])
def test_what_has_come_back_is_looked_for_before_more_memory_is_asked_for(returned: bool) -> None:
    segments, lent, looked = Segments(), [], []

    def reclaim() -> None:
        looked.append(len(segments.made))
        while returned and lent:
            lent.pop().release()

    arena = Arena(segments.make, QUANTUM, reclaim)
    lent.append(arena.allocate(QUANTUM))
    assert looked == [0] and len(segments.made) == 1, "there was nothing yet to come back"
    lent.append(arena.allocate(QUANTUM))
    assert looked == [0, 1] and len(segments.made) == (1 if returned else 2)
    arena.allocate(2 * QUANTUM)
    assert len(looked) == 3 and len(segments.made) == (2 if returned else 3), "what came back was too small"
    arena.add(segments.make(4 * QUANTUM))
    arena.allocate(4 * QUANTUM)
    assert len(looked) == 3, "there was fresh memory"


def test_a_block_that_comes_back_while_it_is_looked_for_may_be_of_a_near_class() -> None:
    segments = Segments()
    lent: List[Block] = []
    arena = Arena(segments.make, QUANTUM, lambda: [block.release() for block in lent])
    block = arena.allocate(QUANTUM)
    lent.append(block)
    assert arena.allocate(QUANTUM - 4096) is block


@given(st.lists(st.integers(0, 2 * QUANTUM), max_size=12), st.data())
def test_free_bytes_and_blocks_in_use_are_all_there_is(sizes: List[int], data: st.DataObject) -> None:
    segments = Segments()
    arena = Arena(segments.make, QUANTUM)
    assert arena.free_bytes() == 0
    blocks: List[Block] = []
    for size in sizes:
        blocks.append(arena.allocate(size))
        if data.draw(st.booleans()):
            blocks.pop(data.draw(st.integers(0, len(blocks) - 1))).release()
        # What is too little for a block at the end of a segment is in none.
        lost = sum(segment.size for segment in segments.made) - sum(block.size for block in blocks) - arena.free_bytes()
        assert 0 <= lost <= (ALIGNMENT + len(sizes) * PAGE) * len(segments.made)
    arena.add(segments.make(4096))
    assert arena.free_bytes() >= 4096


def test_a_block_is_an_array_of_its_bytes(arena: Arena) -> None:
    first, second = arena.allocate(100), arena.allocate(100)
    first.array()[:], second.array()[:] = 1, 2
    assert first.array().tolist() == [1] * 128 and first.array().flags.writeable
    assert first.segment.memory[second.offset] == 2
