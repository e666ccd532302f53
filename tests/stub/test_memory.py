"""The stub's side of shared memory: inputs are views, outputs go by reference or by one copy, what is borrowed stays private, and every
block comes back once."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import weakref
from typing import Any, Callable, Iterator, List, Tuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_runtime import ARENA, FOREIGN, REQUESTS, SEGMENT_BYTES, Memory
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.dtype import BF16, BY_NAME
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.stub import memory
from stublet.stub.host import host
from stublet.stub.memory import REFERENCE_BYTES
from stublet.stub.tensor import Tensor, empty

LARGE, SMALL, BORROWED = REFERENCE_BYTES, 64, LARGE_BYTES
PAGE = mmap.PAGESIZE


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    both = Memory()
    monkeypatch.setattr(host, "allocate", both.memory.empty)
    yield both
    both.close()


def over(base: np.ndarray) -> Tensor:
    """The tensor that fills a block."""
    return Tensor._over("x", BY_NAME["UINT8"], (base.size,), base, 0, base.size)


def request_input(both: Memory, nbytes: int, offset: int = 0) -> Tuple[Tensor, weakref.ref[Any]]:
    """An input that fills its request's block, and what tells that nobody views the block."""
    (base,) = both.memory.receive([(REQUESTS, offset, nbytes)])
    base[:] = 7
    return over(base), weakref.ref(base)


def borrowed_input(both: Memory, nbytes: int, offset: int = 0) -> Tuple[Tensor, weakref.ref[Any]]:
    """The same from another stub, filled with 9."""
    both.others[FOREIGN].memory[offset : offset + nbytes] = b"\x09" * nbytes
    (base,) = both.memory.borrow([(FOREIGN, offset, nbytes)])
    return over(base), weakref.ref(base)


# ---- inputs ----


def test_a_segment_is_fetched_once(both: Memory) -> None:
    for offset in (0, 64, 128):
        for take in (both.memory.receive, both.memory.borrow):
            (base,) = take([(REQUESTS, offset, 64)])
            assert base.size == 64
    assert both.fetched == [REQUESTS]


@pytest.mark.parametrize(
    "location",
    [
        (REQUESTS, 0, SEGMENT_BYTES + 1),
        (REQUESTS, SEGMENT_BYTES, 1),
        (REQUESTS, SEGMENT_BYTES - BORROWED + 1, BORROWED),
        (REQUESTS, -64, 64),
        (REQUESTS, 0, -1),
        (5, 0, 1),
    ],
)
@pytest.mark.parametrize("how", ["receive", "borrow"])
def test_a_location_elsewhere_is_a_protocol_error(both: Memory, how: str, location: Tuple[int, int, int]) -> None:
    with pytest.raises(ProtocolError):
        getattr(both.memory, how)([(REQUESTS, 0, 64), location])


def test_several_blocks_of_one_request(both: Memory) -> None:
    places = [(REQUESTS, 0, SMALL), (REQUESTS, LARGE, LARGE), (REQUESTS, 4 * LARGE, 0)]
    for number, take in enumerate((both.memory.receive, both.memory.borrow)):
        both.others[REQUESTS].memory[:SEGMENT_BYTES] = bytes([number]) * SEGMENT_BYTES
        bases = take(places)
        assert [base.size for base in bases] == [SMALL, LARGE, 0]
        assert all((base == number).all() for base in bases)


@pytest.mark.parametrize("nbytes", [0, SMALL, LARGE])
def test_a_block_that_nobody_views_goes_back_with_the_reply(both: Memory, nbytes: int) -> None:
    tensor, ref = request_input(both, nbytes)
    tensor.as_numpy()
    del tensor
    assert ref() is None and not both.memory.let_go((REQUESTS, 0, nbytes), ref())
    assert not both.memory.dropped and not both.memory._homes


KEEPERS: List[Callable[[Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: tensor.as_numpy(),
    lambda tensor: tensor.as_numpy()[1:2],
    lambda tensor: memoryview(tensor.as_numpy()),
    lambda tensor: tensor.as_numpy().view(np.uint16).reshape(2, -1).T,
    lambda tensor: tensor.to_dlpack(),
    lambda tensor: np.from_dlpack(tensor),
    lambda tensor: Tensor("y", tensor.as_numpy()),
]


@pytest.mark.parametrize("source, nbytes", [(request_input, SMALL), (request_input, LARGE), (borrowed_input, BORROWED)])
@pytest.mark.parametrize("keep", KEEPERS)
def test_a_block_is_pinned_until_its_last_view_is_gone(both: Memory, source: Any, nbytes: int, keep: Any) -> None:
    tensor, ref = source(both, nbytes, offset=PAGE)
    key = (REQUESTS if source is request_input else FOREIGN, PAGE)
    kept = keep(tensor)
    del tensor
    assert both.memory.let_go((*key, nbytes), ref())
    gc.collect()
    assert not both.memory.dropped
    del kept
    assert list(both.memory.dropped) == [key]
    assert not both.memory._pins and not both.memory._homes


def test_the_last_view_may_go_in_another_thread(both: Memory) -> None:
    kept = [request_input(both, LARGE)]
    tensor, ref = kept[0]
    assert both.memory.let_go((REQUESTS, 0, LARGE), ref())
    del tensor, ref
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert list(both.memory.dropped) == [(REQUESTS, 0)]


def test_a_block_that_several_requests_have_is_given_back_by_each(both: Memory) -> None:
    """The same tensor may be an input of several requests of another model. What is written to one is not seen in another, and those
    beyond the fourth are copies, which need no pin."""
    block = (FOREIGN, 0, BORROWED)
    views = [borrowed_input(both, BORROWED)[0] for _ in range(5)]
    for number, view in enumerate(views):
        view.as_numpy()[:] = number
    assert all((view.as_numpy() == number).all() for number, view in enumerate(views))
    assert [both.memory.let_go(block, view._data) for view in views] == [True, True, True, True, False]
    both.memory.keep(block, views[4]._data)
    assert list(both.memory.dropped) == [(FOREIGN, 0)], "as in a response to a call, where it is given back when it has been copied"
    del view
    views.clear()
    assert list(both.memory.dropped) == [(FOREIGN, 0)] * 5
    assert (borrowed_input(both, BORROWED)[0].as_numpy() == 9).all(), "nothing that was written is left"


# ---- what is borrowed ----


@pytest.mark.parametrize("nbytes", [1, SMALL, BORROWED - 1])
def test_little_is_copied_and_goes_back_at_once(both: Memory, nbytes: int) -> None:
    tensor, ref = borrowed_input(both, nbytes, offset=64)
    base = ref()
    assert base is not None and not isinstance(base.base, mmap.mmap)
    both.others[FOREIGN].memory[64 : 64 + nbytes] = bytes(nbytes)
    assert (tensor.as_numpy() == 9).all(), "it is a copy"
    tensor.as_numpy()[:] = 5
    assert not any(both.others[FOREIGN].memory[64 : 64 + nbytes])
    assert not both.memory.let_go((FOREIGN, 64, nbytes), base), "a request's block goes back with the answer"
    assert not both.memory.dropped
    both.memory.keep((FOREIGN, 64, nbytes), base)
    assert list(both.memory.dropped) == [(FOREIGN, 64)], "a response's by itself"


@pytest.mark.parametrize("offset", [0, PAGE, BORROWED])
def test_much_is_mapped_and_what_is_written_to_it_stays_private(both: Memory, offset: int) -> None:
    tensor, ref = borrowed_input(both, BORROWED, offset)
    array = tensor.as_numpy()
    assert (array == 9).all() and array.flags.writeable
    array[:] = 5
    assert both.bytes_at(FOREIGN, offset, BORROWED) == b"\x09" * BORROWED, "nobody else sees it"
    both.memory.keep((FOREIGN, offset, BORROWED), tensor._data)
    del tensor
    assert not both.memory.dropped
    del array
    assert list(both.memory.dropped) == [(FOREIGN, offset)]
    assert ref() is None and not both.memory._homes


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_the_same_block_twice_at_a_time(both: Memory, first_to_end: int) -> None:
    """One tensor may be two inputs of a request: what the model writes to one of them is not seen in the other, and stays."""
    tensors = [borrowed_input(both, BORROWED)[0] for _ in range(2)]
    arrays = [tensor.as_numpy() for tensor in tensors]
    arrays[0][:] = 5
    assert (arrays[1] == 9).all()
    arrays[1][:] = 6
    assert (arrays[0] == 5).all()
    del tensors
    arrays.pop(first_to_end)
    assert (arrays[0] == (6 if first_to_end == 0 else 5)).all()
    assert both.bytes_at(FOREIGN, 0, BORROWED) == b"\x09" * BORROWED


def test_what_was_written_is_gone_when_the_block_comes_again(both: Memory) -> None:
    """Blocks are used again: what one request left in the private mapping must not be seen by the next."""
    for kept in (False, True):
        for value in range(3):
            tensor, _ = borrowed_input(both, BORROWED, offset=BORROWED)
            array = tensor.as_numpy()
            assert (array == 9).all()
            if kept:
                both.memory.keep((FOREIGN, BORROWED, BORROWED), tensor._data)
            array[:: PAGE // 2] = value
            del array, tensor


def test_a_block_that_comes_again_while_it_is_being_left(both: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread drops the last view: that it did is known before the pages are dropped, and the block may be back by then."""
    tensor, _ = borrowed_input(both, BORROWED)
    tensor.as_numpy()[:] = 5
    again: List[Tensor] = []
    is_written = both.memory._is_written

    def and_back(*pages: Any) -> bool:
        both.memory._is_written = is_written  # type: ignore[method-assign]
        written = is_written(*pages)
        again.append(borrowed_input(both, BORROWED)[0])
        assert (again[0].as_numpy() == 9).all()
        again[0].as_numpy()[:] = 6
        return written

    both.memory._is_written = and_back  # type: ignore[method-assign]
    del tensor
    assert (again[0].as_numpy() == 6).all()


@pytest.mark.parametrize("start, size", [(0, BORROWED), (0, LARGE), (PAGE, LARGE), (100, BORROWED - 100)])
def test_what_is_borrowed_goes_on_by_reference_unless_it_was_written(both: Memory, start: int, size: int) -> None:
    tensor, _ = borrowed_input(both, BORROWED, offset=PAGE)
    array = tensor.as_numpy()
    placed = both.place([(0, Tensor("y", array[start : start + size]))])
    assert placed == ([(FOREIGN, PAGE)], [(0, 2, (size,), 0, start, size)])
    assert both.in_use() == 0
    array[start + size // 2] = 5
    placed = both.place([(0, Tensor("y", array[start : start + size]))])
    assert placed.blocks[0][0] != FOREIGN
    ((_, found),) = both.read(placed)
    np.testing.assert_array_equal(found, array[start : start + size])
    both.memory.release(placed.blocks)


def test_only_the_pages_of_the_tensor_count(both: Memory) -> None:
    tensor, _ = borrowed_input(both, 2 * BORROWED)
    array = tensor.as_numpy()
    array[:10] = 5
    assert both.place([(0, Tensor("y", array[BORROWED:]))]).blocks == [(FOREIGN, 0)]
    placed = both.place([(0, tensor)])
    assert placed.blocks[0][0] != FOREIGN
    np.testing.assert_array_equal(both.read(placed)[0][1], array)
    both.memory.release(placed.blocks)


@settings(max_examples=30)
@given(writes=st.lists(st.integers(0, 2 * BORROWED - 1), max_size=3), start=st.integers(0, BORROWED), size=st.integers(LARGE, BORROWED))
def test_others_see_what_the_model_sees(writes: List[int], start: int, size: int) -> None:
    both = Memory()
    tensor, _ = borrowed_input(both, 2 * BORROWED, offset=PAGE)
    array = tensor.as_numpy()
    for index in writes:
        array[index] += 1
    ((_, found),) = both.read(both.place([(0, Tensor("y", array[start : start + size]))]))
    np.testing.assert_array_equal(found, array[start : start + size])
    both.close()


def test_without_a_page_map_it_is_copied(both: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: Any) -> int:
        raise PermissionError(13, path)

    tensor, _ = borrowed_input(both, BORROWED)
    have_a_page_fault()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        placed = both.place([(0, tensor)])
    assert placed.blocks[0][0] != FOREIGN
    assert (both.read(placed)[0][1] == 9).all()
    both.memory.release(placed.blocks)


def test_the_page_map_is_asked_only_after_a_page_fault(both: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *what: asked.append(what) or pread(*what))
    tensor, _ = borrowed_input(both, BORROWED)
    faults = memory._page_faults()
    for happens in (lambda: None, have_a_page_fault):
        happens()
        before = len(asked)
        assert both.place([(0, tensor)]).blocks == [(FOREIGN, 0)]
        assert len(asked) - before == (memory._page_faults() != faults)
    assert asked
    child = os.fork()
    if child == 0:
        os._exit(memory._page_faults()[0] == faults[0])
    assert os.waitpid(child, 0)[1] == 0, "a forked process must not take its count for that of its parent"


def have_a_page_fault() -> None:
    """By writing to a page for the first time."""
    with mmap.mmap(-1, PAGE) as page:
        page[0] = 1


@pytest.mark.parametrize("why", ["no mapping", "no descriptor"])
def test_what_cannot_be_mapped_is_copied(both: Memory, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    both.others[FOREIGN].memory[:BORROWED] = b"\x09" * BORROWED
    with monkeypatch.context() as patched:
        if why == "no mapping":
            patched.setattr(mmap, "mmap", refuse)
        else:
            both.others[FOREIGN].close()
        (base,) = both.memory.borrow([(FOREIGN, 0, BORROWED)])
    base[:] = 5
    assert both.bytes_at(FOREIGN, 0, BORROWED) == b"\x09" * BORROWED
    assert not both.memory.let_go((FOREIGN, 0, BORROWED), base)


def test_ones_own_output_may_come_back_and_be_sent_again(both: Memory) -> None:
    """As from a model that gives back what it is given. Every way of the block counts, and it is free when all of them have ended."""
    tensor = Tensor("y", output(BORROWED, 1))
    called = both.place([(0, tensor)])
    ((key,), _) = called
    assert both.holders(key) == 2, "the call has it, and the tensor itself"
    (base,) = both.memory.borrow([(*key, BORROWED)])
    both.memory.keep((*key, BORROWED), base)
    answered = both.place([(0, over(base))])
    assert answered.blocks == [key]
    assert both.holders(key) == 3
    both.memory.release([key])
    del tensor
    assert both.holders(key) == 1, "one of them has ended, the other has not"
    np.testing.assert_array_equal(base, output(BORROWED, 1))
    del base
    assert list(both.memory.dropped) == [key]
    both.memory.release([key])
    assert both.in_use() == 0


def test_ones_own_output_that_came_back_and_is_not_sent_stays_lent(both: Memory) -> None:
    ((key,), _) = both.place([(0, Tensor("y", output(BORROWED, 1)))])
    assert both.holders(key) == 1
    (base,) = both.memory.borrow([(*key, BORROWED)])
    both.memory.take_back(both.place([(0, over(base))]).blocks)
    assert both.holders(key) == 1


def test_garbage_that_views_a_block_may_be_collected_at_any_moment(both: Memory) -> None:
    """The table of what lies where is changed by the collector while it is searched."""
    source, _ = request_input(both, LARGE, offset=0)
    others = both.memory.receive([(REQUESTS, 2 * LARGE + number, LARGE) for number in range(30)])
    for threshold in range(1, 60):
        gc.collect()
        gc.disable()
        held: List[Any] = list(both.memory.receive([(REQUESTS, LARGE, LARGE)]))
        held.append(held)  # a cycle
        del held
        gc.set_threshold(threshold)
        gc.enable()
        try:
            placed = both.place([(0, source)])
        finally:
            gc.set_threshold(700, 10, 10)
        assert placed.blocks == [(REQUESTS, 0)]
    assert len(others) == 30
    gc.collect()


# ---- outputs ----


def output(nbytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, nbytes, np.uint8)


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


# ---- room ----


@pytest.mark.parametrize("sizes", [[LARGE, LARGE, ARENA], [LARGE, SMALL, ARENA], [SMALL, ARENA], [ARENA, LARGE]])
def test_what_was_placed_before_the_room_ended_is_taken_back(both: Memory, sizes: List[int]) -> None:
    both.room = 512 << 10
    for _ in range(3):
        with pytest.raises(OutOfSharedMemory):
            both.place([(i, Tensor("y", output(size, i))) for i, size in enumerate(sizes)])
        assert both.in_use() == 0


def test_blocks_that_have_come_back_serve_before_the_arena_grows(both: Memory) -> None:
    both.room = 128 << 10
    placed = both.place([(0, Tensor("y", output(100 << 10, 1)))])
    both.room = 0
    with pytest.raises(OutOfSharedMemory):
        both.place([(0, Tensor("y", output(100 << 10, 2)))])
    both.coming_back = placed.blocks
    again = both.place([(0, Tensor("y", output(100 << 10, 3)))])
    assert again.blocks == placed.blocks
    np.testing.assert_array_equal(both.read(again)[0][1], output(100 << 10, 3))
    both.memory.release(again.blocks)


def test_free_bytes_count_what_is_in_no_use(both: Memory) -> None:
    assert both.memory.free_bytes() == 0
    made = empty("y", (LARGE,), "UINT8")
    total = both.memory.free_bytes() + LARGE
    assert total == 64 << 10
    ((key,), _) = both.place([(0, made)])
    del made
    assert both.memory.free_bytes() == total - LARGE, "it is lent"
    both.memory.release([key])
    assert both.memory.free_bytes() == total


def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have(both: Memory) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with both.memory._lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    both.memory.forked()
    made = empty("y", (LARGE,), "UINT8")
    done.set()
    thread.join()
    del made
    assert both.in_use() == 0


# ---- threads ----


def test_threads_may_ask_for_outputs_at_once(both: Memory) -> None:
    both.room = 1 << 30
    wrong: List[str] = []

    def work(mark: int) -> None:
        for round_ in range(60):
            tensors = [empty("y", (size,), "UINT8") for size in (LARGE, LARGE + 1000 * mark, SMALL)]
            for tensor in tensors:
                tensor.as_numpy()[:] = mark
            placed = both.place(list(enumerate(tensors)))
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
