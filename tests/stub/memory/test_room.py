"""What happens without room, and with several threads or a forked process."""

from __future__ import annotations

import threading
from typing import List

import numpy as np
import pytest
from stub_runtime import ARENA, Memory
from stub_tensors import LARGE, SMALL, output
from stublet.shm.errors import OutOfSharedMemory
from stublet.stub.tensor import Tensor, empty

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
