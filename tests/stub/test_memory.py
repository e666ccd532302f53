"""The stub's side of shared memory: inputs are views, outputs go by reference or by one copy, and every block comes back once."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest
from stublet.shm.dtype import BF16, BY_CODE, BY_NAME
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.shm.segment import Segment
from stublet.stub.host import host
from stublet.stub.memory import REFERENCE_BYTES, Placed, StubMemory
from stublet.stub.tensor import Tensor, empty

LARGE, SMALL = REFERENCE_BYTES, 64
REQUESTS = 100
"""Id of the parent's segment."""


class Both:
    """A stub's memory, and the parent who supplies it and reads from it."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.segments: List[Segment] = []
        self.requests = Segment.create(REQUESTS, 256 << 10)
        self.requests.close()
        self.fetched: List[int] = []
        self.memory = StubMemory(self.fetch, self.grow, 64 << 10)

    def fetch(self, segment_id: int) -> Segment:
        self.fetched.append(segment_id)
        if segment_id != REQUESTS:
            raise ProtocolError(f"segment {segment_id} was not announced")
        return self.requests

    def grow(self, nbytes: int) -> Segment:
        if nbytes > self.room:
            raise OutOfSharedMemory(f"no room for {nbytes}")
        self.room -= nbytes
        segment = Segment.create(len(self.segments), nbytes)
        segment.close()
        self.segments.append(segment)
        return segment

    def read(self, placed: Placed) -> List[Tuple[int, np.ndarray]]:
        """What the parent finds where the message says."""
        found = []
        for name, dtype, shape, index, offset, nbytes in placed.outputs:
            segment, start = placed.blocks[index]
            memory = (self.requests if segment == REQUESTS else self.segments[segment]).memory
            data = np.frombuffer(bytes(memory[start + offset : start + offset + nbytes]), np.uint8)
            numpy = BY_CODE[dtype].numpy
            found.append((name, data.view(numpy).reshape(shape) if numpy is not None and numpy.kind != "O" else data))
        return sorted(found, key=lambda pair: pair[0])

    def in_use(self) -> int:
        """Blocks of the arena that somebody holds."""
        self.memory.arena.collect()
        return sum(block.holders > 0 for block in self.memory.arena._blocks.values())


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    both = Both()
    monkeypatch.setattr(host, "allocate", both.memory.empty)
    yield both


def request_input(both: Both, nbytes: int, offset: int = 0) -> Tuple[Tensor, weakref.ref[Any]]:
    """An input that fills its request's block, and what tells that nobody views the block."""
    base = both.memory.base(REQUESTS, offset, nbytes)
    base[:] = 7
    return Tensor._over("x", BY_NAME["UINT8"], (nbytes,), base, 0, nbytes), weakref.ref(base)


# ---- inputs ----


def test_a_segment_is_fetched_once(both: Both) -> None:
    for offset in (0, 64, 128):
        assert both.memory.base(REQUESTS, offset, 64).size == 64
    assert both.fetched == [REQUESTS]


@pytest.mark.parametrize(
    "location", [(REQUESTS, 0, (256 << 10) + 1), (REQUESTS, 256 << 10, 1), (REQUESTS, -64, 64), (REQUESTS, 0, -1), (5, 0, 1)]
)
def test_a_location_elsewhere_is_a_protocol_error(both: Both, location: Tuple[int, int, int]) -> None:
    with pytest.raises(ProtocolError):
        both.memory.base(*location)


@pytest.mark.parametrize("nbytes", [0, SMALL, LARGE])
def test_a_block_that_nobody_views_goes_back_with_the_reply(both: Both, nbytes: int) -> None:
    tensor, ref = request_input(both, nbytes)
    tensor.as_numpy()
    del tensor
    assert not both.memory.let_go((REQUESTS, 0), ref)
    assert not both.memory.dropped


@pytest.mark.parametrize("nbytes", [SMALL, LARGE])
@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.as_numpy(),
        lambda tensor: tensor.as_numpy()[1:2],
        lambda tensor: memoryview(tensor.as_numpy()),
        lambda tensor: tensor.as_numpy().view(np.uint16).reshape(2, -1).T,
        lambda tensor: tensor.to_dlpack(),
        lambda tensor: np.from_dlpack(tensor),
        lambda tensor: Tensor("y", tensor.as_numpy()),
    ],
)
def test_a_block_is_pinned_until_its_last_view_is_gone(both: Both, nbytes: int, keep: Any) -> None:
    tensor, ref = request_input(both, nbytes, offset=64)
    kept = keep(tensor)
    del tensor
    assert both.memory.let_go((REQUESTS, 64), ref)
    gc.collect()
    assert not both.memory.dropped
    del kept
    assert list(both.memory.dropped) == [(REQUESTS, 64)]
    assert not both.memory._pins and not both.memory._homes


def test_the_last_view_may_go_in_another_thread(both: Both) -> None:
    kept = [request_input(both, LARGE)]
    tensor, ref = kept[0]
    assert both.memory.let_go((REQUESTS, 0), ref)
    del tensor, ref
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert list(both.memory.dropped) == [(REQUESTS, 0)]


# ---- outputs ----


def output(nbytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, nbytes, np.uint8)


@pytest.mark.parametrize("sizes", [[0], [1], [SMALL, 1, SMALL], [LARGE], [LARGE, SMALL, LARGE + 1], []])
def test_what_lies_elsewhere_is_copied_into_one_block(both: Both, sizes: List[int]) -> None:
    arrays = [output(size, seed) for seed, size in enumerate(sizes)]
    placed = both.memory.place([(i, Tensor("y", array)) for i, array in enumerate(arrays)])
    assert len(placed.blocks) == (1 if sizes else 0)
    found = both.read(placed)
    assert [name for name, _ in found] == list(range(len(sizes)))
    for (_, data), array in zip(found, arrays):
        np.testing.assert_array_equal(data, array)
    assert all(offset % 64 == 0 for *_, offset, _ in placed.outputs)
    both.memory.release(placed.blocks)
    assert both.in_use() == 0


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, 2.5]], np.float16),
        np.array(True),
        np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.ones((0, 3), np.int8),
        np.arange(LARGE, dtype=np.uint32).reshape(2, -1),
    ],
)
def test_every_array_arrives_as_it_was(both: Both, array: np.ndarray) -> None:
    ((_, found),) = both.read(both.memory.place([(0, Tensor("y", array))]))
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_strings_and_bf16_arrive_as_they_were(both: Both) -> None:
    strings = Tensor("y", np.array([b"a", b"bc"], object))
    bf16 = Tensor._over("z", BF16, (2,), np.frombuffer(b"..1234", np.uint8), 2, 4)
    (_, first), (_, second) = both.read(both.memory.place([(0, strings), (1, bf16)]))
    assert (first.tobytes(), second.tobytes()) == (b"\1\0\0\0a\2\0\0\0bc", b"1234")


def test_an_output_made_in_place_goes_by_reference(both: Both) -> None:
    tensor = empty("y", (LARGE // 4,), "FP32")
    tensor.as_numpy()[:] = 3
    placed = both.memory.place([(0, tensor)])
    assert both.in_use() == 1, "nothing was copied"
    tensor.as_numpy()[0] = 4
    ((_, found),) = both.read(placed)
    assert found[0] == 4 and found[1] == 3
    del tensor
    assert both.in_use() == 1, "it is lent"
    both.memory.release(placed.blocks)
    assert both.in_use() == 0 and not both.memory._homes


def test_a_block_waits_for_its_view_when_the_parent_is_done(both: Both) -> None:
    tensor = empty("y", (LARGE,), "UINT8")
    array = tensor.as_numpy()[LARGE // 2 :]
    both.memory.release(both.memory.place([(0, tensor)]).blocks)
    del tensor
    assert both.in_use() == 1
    del array
    assert both.in_use() == 0


def test_one_tensor_in_two_responses_is_lent_twice(both: Both) -> None:
    tensor = empty("y", (LARGE,), "UINT8")
    first, second = (both.memory.place([(0, tensor)]) for _ in range(2))
    assert first.blocks == second.blocks
    del tensor
    both.memory.release(first.blocks)
    assert both.in_use() == 1
    both.memory.release(second.blocks)
    assert both.in_use() == 0
    with pytest.raises(ProtocolError, match="is given back but not in use"):
        both.memory.release(second.blocks)


@pytest.mark.parametrize("start, size", [(0, 2 * LARGE), (64, LARGE), (LARGE, LARGE)])
def test_part_of_an_input_goes_by_reference(both: Both, start: int, size: int) -> None:
    tensor, _ = request_input(both, 2 * LARGE, offset=128)
    tensor.as_numpy()[:] = output(2 * LARGE, 1)
    placed = both.memory.place([(0, Tensor("y", tensor.as_numpy()[start : start + size]))])
    assert placed == ([(REQUESTS, 128)], [(0, 2, (size,), 0, start, size)])
    np.testing.assert_array_equal(both.read(placed)[0][1], output(2 * LARGE, 1)[start : start + size])
    assert both.in_use() == 0


def test_a_small_part_of_an_input_is_copied(both: Both) -> None:
    tensor, _ = request_input(both, 2 * LARGE)
    placed = both.memory.place([(0, Tensor("y", tensor.as_numpy()[:SMALL]))])
    assert placed.blocks[0][0] != REQUESTS


def test_copies_and_references_in_one_response(both: Both) -> None:
    source, _ = request_input(both, LARGE)
    made = empty("b", (LARGE,), "UINT8")
    made.as_numpy()[:] = 9
    tensors = [Tensor("a", output(SMALL, 1)), made, source, Tensor("d", output(LARGE, 2))]
    placed = both.memory.place(list(enumerate(tensors)))
    assert len(placed.blocks) == 3
    for (_, found), tensor in zip(both.read(placed), tensors):
        np.testing.assert_array_equal(found, tensor.as_numpy())
    both.memory.release([key for key in placed.blocks if key[0] != REQUESTS])
    del made, tensors, tensor
    assert both.in_use() == 0


def test_a_response_that_is_not_sent_gives_its_blocks_back(both: Both) -> None:
    source, _ = request_input(both, LARGE)
    made = empty("y", (LARGE,), "UINT8")
    placed = both.memory.place([(0, source), (1, made), (2, Tensor("z", output(SMALL, 1)))])
    both.memory.take_back(placed.blocks)
    assert both.in_use() == 1, "the model still has the one it made"
    del made
    assert both.in_use() == 0


def test_an_output_without_room_leaves_nothing_lent(both: Both) -> None:
    made = empty("y", (LARGE,), "UINT8")
    both.room = 0
    with pytest.raises(OutOfSharedMemory, match="no room for"):
        both.memory.place([(0, made), (1, Tensor("z", output(1 << 20, 1)))])
    with pytest.raises(OutOfSharedMemory, match="no room for"):
        empty("y", (1 << 20,), "UINT8")
    del made
    assert both.in_use() == 0
    both.memory.release(both.memory.place([(0, Tensor("z", output(SMALL, 1)))]).blocks)


def test_a_copied_block_is_given_back_once(both: Both) -> None:
    (key,) = both.memory.place([(0, Tensor("y", output(SMALL, 1)))]).blocks
    both.memory.release([key])
    for wrong in (key, (key[0], key[1] + 64), (99, 0)):
        with pytest.raises(ProtocolError, match="is given back but not in use"):
            both.memory.release([wrong])


def test_a_long_record_is_written_to_a_block(both: Both) -> None:
    record = bytes(range(256)) * 40
    segment, offset = both.memory.write(record)
    assert both.segments[segment].memory[offset : offset + len(record)] == record
    both.memory.release([(segment, offset)])
    assert both.in_use() == 0


def test_the_dimensions_of_an_output_can_travel(both: Both) -> None:
    tensor = empty("y", (np.int64(2), np.uint8(3)), "FP32")  # type: ignore[arg-type]
    ((_, _, shape, *_),) = both.memory.place([(0, tensor)]).outputs
    assert shape == (2, 3) and [type(dim) for dim in shape] == [int, int]


def test_threads_may_ask_for_outputs_at_once(both: Both) -> None:
    both.room = 1 << 30
    wrong: List[str] = []

    def work(mark: int) -> None:
        for round_ in range(60):
            tensors = [empty("y", (size,), "UINT8") for size in (LARGE, LARGE + 1000 * mark, SMALL)]
            for tensor in tensors:
                tensor.as_numpy()[:] = mark
            placed = both.memory.place(list(enumerate(tensors)))
            if any((found != mark).any() for _, found in both.read(placed)):
                wrong.append(f"{mark} in round {round_}")
            both.memory.release(placed.blocks)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert both.in_use() == 0 and not both.memory._homes
