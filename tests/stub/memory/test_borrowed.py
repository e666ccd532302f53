"""What lies in another stub's memory: it stays as it was for everybody else, and every block comes back once."""

from __future__ import annotations

import gc
import mmap
import os
from typing import Any, List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_runtime import FOREIGN, REQUESTS, Memory
from stub_tensors import BORROWED, LARGE, PAGE, SMALL, borrowed_input, output, over, request_input
from stublet.stub import memory
from stublet.stub.tensor import Tensor


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
