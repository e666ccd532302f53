"""Slabs: requests take rows as they come, no two the same, next to one another, and everything goes back to the arena."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stublet.parent.request import Request
from stublet.parent.slabs import Place, Rows, Slabs, in_order, request_at, rows_of
from stublet.parent.validation import Layout
from stublet.shm.arena import ALIGNMENT, Arena, aligned
from stublet.shm.dtype import BY_NAME, element_count
from stublet.shm.errors import OutOfSharedMemory
from stublet.shm.segment import Segment

FP32 = BY_NAME["FP32"].code
BATCH = 8


class Memory:
    """An arena, and the segments that it was given. ``room``: bytes that it may have in all."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.segments: List[Segment] = []
        self.arena = Arena(self._grow, 64 << 10)
        self.slabs = Slabs(self.arena, BATCH)

    def _grow(self, nbytes: int) -> Segment:
        if nbytes > self.room:
            raise OutOfSharedMemory("no")
        self.room -= nbytes
        segment = Segment.create(len(self.segments), nbytes, as_it_fills=True)
        segment.close()
        self.segments.append(segment)
        return segment

    def in_use(self) -> int:
        self.arena.collect()
        return sum(block.holders > 0 for block in self.arena._blocks.values())


@pytest.fixture
def memory() -> Iterator[Memory]:
    yield Memory()


def described(size: int, *items: Tuple[int, ...]) -> Rows:
    """A request of ``size`` batch items with FP32 inputs of these shapes."""
    rows = rows_of(tuple(inputs_of(size, *items)))
    assert rows is not None
    return rows


def inputs_of(size: int, *items: Tuple[int, ...]) -> List[Any]:
    inputs, offset = [], 0
    for index, item in enumerate(items):
        nbytes = 4 * size * element_count(item)
        inputs.append((index, FP32, (size, *item), 0, offset, nbytes))
        offset += aligned(nbytes)
    return inputs


def taken(memory: Memory, *arguments: Any) -> Place:
    place = memory.slabs.take(described(*arguments))
    assert place is not None
    return place


def spans(place: Place) -> List[Tuple[int, int]]:
    """Where in the block each input lies."""
    return [(offset, offset + nbytes) for *_, offset, nbytes in place.inputs]


def test_requests_lie_next_to_one_another(memory: Memory) -> None:
    places = [taken(memory, size, (3,), (1, 2)) for size in (1, 3, 2)]
    assert len({place.block for place in places}) == 1
    for lane, width in ((0, 12), (1, 8)):
        lanes = [spans(place)[lane] for place in places]
        start = lanes[0][0]
        assert start % ALIGNMENT == 0
        assert lanes == [(start, start + width), (start + width, start + 4 * width), (start + 4 * width, start + 6 * width)]


def test_what_is_written_lies_where_the_message_says(memory: Memory) -> None:
    inputs = inputs_of(2, (3,), (4,))
    first, second = (memory.slabs.take(described(2, (3,), (4,))) for _ in range(2))
    for mark, place in enumerate((first, second)):
        assert place is not None
        for number, (*_, offset, nbytes) in enumerate(inputs):
            data = bytes([10 * mark + number]) * nbytes
            place.write(offset, data[:5], 5)  # a body may come in any pieces
            place.write(offset + 5, data[5:], nbytes - 5)
    for mark, place in enumerate((first, second)):
        assert place is not None
        memory_, base = place.block.segment.memory, place.block.offset
        for number, (start, end) in enumerate(spans(place)):
            assert memory_[base + start : base + end] == bytes([10 * mark + number]) * (end - start)


def test_the_order_in_which_a_client_names_its_inputs_does_not_matter(memory: Memory) -> None:
    first, second = inputs_of(1, (3,), (4,))
    swapped = rows_of(((*first[:4], 64, 12), (*second[:4], 0, 16)))
    assert swapped is not None
    place, other = memory.slabs.take(swapped), taken(memory, 1, (3,), (4,))
    assert place is not None and place.block is other.block
    place.write(64, b"a" * 12, 12)
    place.write(0, b"b" * 16, 16)
    block = place.block
    assert [bytes(block.segment.memory[block.offset + a : block.offset + b]) for a, b in spans(place)] == [b"a" * 12, b"b" * 16]


def test_an_empty_input_takes_nothing(memory: Memory) -> None:
    place = taken(memory, 2, (0,), (3,), (0, 4))
    place.write(0, b"x" * 24, 24)
    start, end = spans(place)[1]
    assert place.block.segment.memory[place.block.offset + start : place.block.offset + end] == b"x" * 24
    assert rows_of(tuple(inputs_of(2, (0,)))) is None and rows_of(()) is None


def test_a_slab_in_which_nothing_lies_is_begun_again(memory: Memory) -> None:
    first = taken(memory, 3, (2,))
    block, where = first.block, spans(first)
    first.release()
    assert memory.slabs.idle_bytes() == block.size
    again = taken(memory, 3, (2,))
    assert again.block is block and spans(again) == where


def test_a_slab_goes_back_when_the_last_request_in_it_does(memory: Memory) -> None:
    places = []
    while len({place.block for place in places}) < 2:
        places.append(taken(memory, BATCH, (2,)))
    full = places[0].block
    assert full.holders == len(places) - 1, "it is held by those who lie in it only"
    for place in places[:-1]:
        place.release()
    assert full.holders == 0 and memory.in_use() == 1


def test_the_next_batch_is_not_torn_apart(memory: Memory) -> None:
    """When nobody waits any more, the rest of a slab that might be too small for a batch is left."""
    width = 64 << 10
    first = taken(memory, 1, (width,))
    memory.slabs.cut()
    second = taken(memory, BATCH, (width,))
    assert second.block is first.block, "there is room enough"
    memory.slabs.cut()
    last = taken(memory, 1, (width,))
    assert last.block is not first.block and spans(last)[0][0] == 0


def test_only_a_few_kinds_of_requests_have_a_slab_open(memory: Memory) -> None:
    for width in range(1, 30):
        taken(memory, 1, (width,)).release()
    assert memory.in_use() == 8
    memory.slabs.close()
    assert memory.in_use() == 0


def test_a_slab_holds_two_batches_or_more_of_what_is_small(memory: Memory) -> None:
    rows = {width: taken(memory, 1, (width,)).block.size // (4 * width) for width in (1 << 6, 1 << 12, 1 << 16)}
    assert rows == {1 << 6: 256, 1 << 12: 64, 1 << 16: 2 * BATCH}


def test_large_items_have_smaller_slabs_and_very_large_ones_none(memory: Memory) -> None:
    place = taken(memory, 2, (5 << 20,))
    assert place.block.size <= 80 << 20
    assert memory.slabs.take(described(1, (17 << 20,))) is None
    assert memory.slabs.take(described(8, (5 << 20,))) is None, "three of them fit"


def test_without_room_for_a_slab_a_request_has_a_block_of_its_own() -> None:
    memory = Memory(room=64 << 10)
    place = taken(memory, 1, (2,))
    assert memory.slabs.take(described(1, (1 << 20,))) is None
    place.release()
    assert memory.in_use() == 0, "slabs that are open leave room to others"


SIZES = st.integers(1, BATCH)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), SIZES, st.integers(1, 4)),
        st.tuples(st.just("release"), st.integers(0, 100), st.just(0)),
        st.tuples(st.just("abandon"), st.integers(0, 100), st.just(0)),
        st.tuples(st.just("cut"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(events=EVENTS)
def test_no_two_requests_have_a_byte_in_common_and_all_is_given_back(events: List[Tuple[str, int, int]]) -> None:
    memory = Memory()
    held: Dict[int, Place] = {}
    for number, (event, argument, width) in enumerate(events):
        if event == "take":
            held[number] = taken(memory, argument, (width,), (2, width))
        elif event == "cut":
            memory.slabs.cut()
        elif held:
            place = held.pop(list(held)[argument % len(held)])
            if event == "release":
                place.release()
            else:
                memory.arena.dropped.append(place)
                memory.arena.collect()
        occupied: Set[Tuple[Any, int]] = set()
        for place in held.values():
            for start, end in spans(place):
                assert 0 <= start <= end <= place.block.size
                base = place.block.offset
                bytes_of = {(place.block.segment.id, base + at) for at in range(start, end)}
                assert not occupied & bytes_of
                occupied |= bytes_of
    for place in held.values():
        place.release()
    memory.slabs.close()
    assert memory.in_use() == 0


# ---- requests ----


def request(place: Place) -> Request:
    return request_at(place, Layout([], [], (), 0), (), lambda *_: None)


def test_a_request_holds_the_block(memory: Memory) -> None:
    place = taken(memory, 1, (1 << 16,))
    place.write(0, bytes(1 << 18), 1 << 18)
    made = request(place)
    assert made.blocks == [(place.block, place.block.size)] and made.inputs == place.inputs
    assert made.input_ns > 0 and place.block.write_ns == 0
    made.release()
    memory.slabs.close()
    assert memory.in_use() == 0


def test_a_batch_is_in_the_order_of_its_rows(memory: Memory) -> None:
    requests = [request(taken(memory, 1, (2,))) for _ in range(4)]
    late = [requests[2], requests[0], requests[3], requests[1]]
    assert in_order(late) == requests
    elsewhere = request(taken(memory, 1, (3,)))
    assert in_order([elsewhere, *late]) == [elsewhere, *late]
