"""Outputs go by reference or by one copy, and are read once."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
from stub_runtime import FOREIGN, REQUESTS, Memory
from stub_tensors import BORROWED, LARGE, SMALL, borrowed_input, output, request_input
from stublet.shm.dtype import BF16
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.stub.tensor import Tensor, empty

# ---- outputs ----


@pytest.mark.parametrize("sizes", [[0], [1], [SMALL, 1, SMALL], [LARGE], [LARGE, SMALL, LARGE + 1], []])
def test_what_lies_elsewhere_is_copied(both: Memory, sizes: List[int]) -> None:
    arrays = [output(size, seed) for seed, size in enumerate(sizes)]
    placed = both.place([(i, Tensor("y", array)) for i, array in enumerate(arrays)])
    large = sum(size >= LARGE for size in sizes)
    assert len(placed.blocks) == large + (large < len(sizes)), "a large one has a block of its own, the small ones have one together"
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
def test_every_array_arrives_as_it_was(both: Memory, array: np.ndarray) -> None:
    ((_, found),) = both.read(both.place([(0, Tensor("y", array))]))
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_strings_and_bf16_arrive_as_they_were(both: Memory) -> None:
    strings = Tensor("y", np.array([b"a", b"bc"], object))
    bf16 = Tensor._over("z", BF16, (2,), np.frombuffer(b"..1234", np.uint8), 2, 4)
    (_, first), (_, second) = both.read(both.place([(0, strings), (1, bf16)]))
    assert (first.tobytes(), second.tobytes()) == (b"\1\0\0\0a\2\0\0\0bc", b"1234")


def test_an_output_made_in_place_goes_by_reference(both: Memory) -> None:
    tensor = empty("y", (LARGE // 4,), "FP32")
    tensor.as_numpy()[:] = 3
    placed = both.place([(0, tensor)])
    assert both.in_use() == 1, "nothing was copied"
    tensor.as_numpy()[0] = 4
    ((_, found),) = both.read(placed)
    assert found[0] == 4 and found[1] == 3
    del tensor
    assert both.in_use() == 1, "it is lent"
    both.memory.release(placed.blocks)
    assert both.in_use() == 0 and not both.memory._homes


def test_a_block_waits_for_its_view_when_the_parent_is_done(both: Memory) -> None:
    tensor = empty("y", (LARGE,), "UINT8")
    array = tensor.as_numpy()[LARGE // 2 :]
    both.memory.release(both.place([(0, tensor)]).blocks)
    del tensor
    assert both.in_use() == 1
    del array
    assert both.in_use() == 0


def test_one_tensor_in_two_responses_is_lent_twice(both: Memory) -> None:
    tensor = empty("y", (LARGE,), "UINT8")
    first, second = (both.place([(0, tensor)]) for _ in range(2))
    assert first.blocks == second.blocks
    del tensor
    both.memory.release(first.blocks)
    assert both.in_use() == 1
    both.memory.release(second.blocks)
    assert both.in_use() == 0
    with pytest.raises(ProtocolError, match="is given back but not in use"):
        both.memory.release(second.blocks)


@pytest.mark.parametrize("start, size", [(0, 2 * LARGE), (64, LARGE), (LARGE, LARGE)])
def test_part_of_an_input_goes_by_reference(both: Memory, start: int, size: int) -> None:
    tensor, _ = request_input(both, 2 * LARGE, offset=128)
    tensor.as_numpy()[:] = output(2 * LARGE, 1)
    placed = both.place([(0, Tensor("y", tensor.as_numpy()[start : start + size]))])
    assert placed == ([(REQUESTS, 128)], [(0, 2, (size,), 0, start, size)])
    np.testing.assert_array_equal(both.read(placed)[0][1], output(2 * LARGE, 1)[start : start + size])
    assert both.in_use() == 0


@pytest.mark.parametrize("start, size", [(0, 2 * LARGE), (LARGE, LARGE)])
def test_an_input_that_the_model_may_still_change_is_copied(both: Memory, start: int, size: int) -> None:
    tensor, _ = request_input(both, 2 * LARGE)
    array = tensor.as_numpy()
    array[:] = output(2 * LARGE, 1)
    placed = both.place([(0, Tensor("y", array[start : start + size]))], goes_on=True)
    array[:] = 0
    np.testing.assert_array_equal(both.read(placed)[0][1], output(2 * LARGE, 1)[start : start + size])
    both.memory.release(placed.blocks)
    assert both.in_use() == 0


def test_one_that_it_cannot_change_for_others_goes_by_reference_all_the_same(both: Memory) -> None:
    tensor, _ = borrowed_input(both, BORROWED)
    placed = both.place([(0, tensor)], goes_on=True)
    assert placed.blocks == [(FOREIGN, 0)]
    tensor.as_numpy()[:] = 5
    assert (both.read(placed)[0][1] == 9).all()
    made = empty("y", (LARGE,), "UINT8")
    placed = both.place([(0, made)], goes_on=True)
    assert both.in_use() == 1, "that it is read where it lies is what it was made for"
    both.memory.release(placed.blocks)


def test_an_input_that_is_sent_and_kept_is_copied_after_all(both: Memory) -> None:
    tensor, _ = request_input(both, 2 * LARGE)
    array = tensor.as_numpy()
    array[:] = output(2 * LARGE, 1)
    halves = [Tensor("y", array[LARGE * half : LARGE * (half + 1)]) for half in (1, 0)]
    placed = both.place([*enumerate(halves), (2, Tensor("z", output(SMALL, 2)))])
    assert placed.blocks[:2] == [(REQUESTS, 0)] * 2
    assert tensor._data is not None
    both.memory.detach(placed.blocks, (REQUESTS, 0), tensor._data)
    array[:] = 0
    found = [data for _, data in both.read(placed)]
    for data, expected in zip(found, (output(2 * LARGE, 1)[LARGE:], output(2 * LARGE, 1)[:LARGE], output(SMALL, 2))):
        np.testing.assert_array_equal(data, expected)
    both.memory.release(placed.blocks)
    assert both.in_use() == 0


def test_without_room_for_that_copy_it_stays_where_it_is(both: Memory) -> None:
    tensor, _ = request_input(both, LARGE)
    placed = both.place([(0, tensor)])
    both.room = 0
    assert tensor._data is not None
    both.memory.detach(placed.blocks, (REQUESTS, 0), tensor._data)
    assert placed.blocks == [(REQUESTS, 0)]


def test_a_small_part_of_an_input_is_copied(both: Memory) -> None:
    tensor, _ = request_input(both, 2 * LARGE)
    placed = both.place([(0, Tensor("y", tensor.as_numpy()[:SMALL]))])
    assert placed.blocks[0][0] != REQUESTS


def test_copies_and_references_in_one_response(both: Memory) -> None:
    source, _ = request_input(both, LARGE)
    made = empty("b", (LARGE,), "UINT8")
    made.as_numpy()[:] = 9
    tensors = [Tensor("a", output(SMALL, 1)), made, source, Tensor("d", output(LARGE, 2))]
    placed = both.place(list(enumerate(tensors)))
    assert len(placed.blocks) == 4
    for (_, found), tensor in zip(both.read(placed), tensors):
        np.testing.assert_array_equal(found, tensor.as_numpy())
    both.memory.release([key for key in placed.blocks if key[0] != REQUESTS])
    del made, tensors, tensor
    assert both.in_use() == 0


def test_a_response_that_is_not_sent_gives_its_blocks_back(both: Memory) -> None:
    source, _ = request_input(both, LARGE)
    made = empty("y", (LARGE,), "UINT8")
    placed = both.place([(0, source), (1, made), (2, Tensor("z", output(SMALL, 1)))])
    both.memory.take_back(placed.blocks)
    assert both.in_use() == 1, "the model still has the one it made"
    del made
    assert both.in_use() == 0


def test_an_output_without_room_leaves_nothing_lent(both: Memory) -> None:
    made = empty("y", (LARGE,), "UINT8")
    both.room = 0
    with pytest.raises(OutOfSharedMemory, match="no room for"):
        both.place([(0, made), (1, Tensor("z", output(1 << 20, 1)))])
    with pytest.raises(OutOfSharedMemory, match="no room for"):
        empty("y", (1 << 20,), "UINT8")
    del made
    assert both.in_use() == 0
    both.memory.release(both.place([(0, Tensor("z", output(SMALL, 1)))]).blocks)


def test_a_copied_block_is_given_back_once(both: Memory) -> None:
    (key,) = both.place([(0, Tensor("y", output(SMALL, 1)))]).blocks
    both.memory.release([key])
    for wrong in (key, (key[0], key[1] + 64), (99, 0)):
        with pytest.raises(ProtocolError, match="is given back but not in use"):
            both.memory.release([wrong])


def test_a_long_record_is_written_to_a_block(both: Memory) -> None:
    record = bytes(range(256)) * 40
    segment, offset = both.memory.write(record)
    assert both.segments[segment].memory[offset : offset + len(record)] == record
    both.memory.release([(segment, offset)])
    assert both.in_use() == 0


def test_the_dimensions_of_an_output_can_travel(both: Memory) -> None:
    tensor = empty("y", (np.int64(2), np.uint8(3)), "FP32")  # type: ignore[arg-type]
    ((_, _, shape, *_),) = both.place([(0, tensor)]).outputs
    assert shape == (2, 3) and [type(dim) for dim in shape] == [int, int]


# ---- what is sent is read once ----


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_tensor_is_read_when_it_is_first_sent(both: Memory, size: int) -> None:
    array = np.full(size, 1, np.uint8)
    tensor = Tensor("y", array)
    array[:] = 2
    first = both.place([(0, tensor)])
    array[:] = 3
    second = both.place([(0, tensor), (1, Tensor("z", array))])
    assert (both.read(first)[0][1] == 2).all()
    (_, again), (_, other) = both.read(second)
    assert (again == 2).all() and (other == 3).all()
    assert (tensor.as_numpy() == 3).all(), "the array itself stays the model's"
    for placed in (first, second):
        both.memory.release(placed.blocks)
    del tensor
    assert both.in_use() == 0


def test_a_large_tensor_is_copied_once(both: Memory) -> None:
    tensor = Tensor("y", output(LARGE, 1))
    placed = [both.place([(0, tensor)]) for _ in range(3)]
    assert both.in_use() == 1 and placed[0] == placed[1] == placed[2]
    for one in placed:
        both.memory.release(one.blocks)
    assert both.in_use() == 1, "it may be sent once more"
    del tensor
    assert both.in_use() == 0


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_tensor_that_found_no_room_is_read_when_it_does(both: Memory, size: int) -> None:
    array = np.full(size, 1, np.uint8)
    tensor = Tensor("y", array)
    room, both.room = both.room, 0
    with pytest.raises(OutOfSharedMemory):
        both.place([(0, tensor)])
    both.room = room
    placed = both.place([(0, tensor)])
    assert (both.read(placed)[0][1] == 1).all()
    both.memory.release(placed.blocks)
