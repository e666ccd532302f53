"""A block that was lent is given back once, whichever comes first: its last view's end, or the answer of its request."""

from __future__ import annotations

import gc
import sys
import threading
from types import SimpleNamespace
from typing import Any, Iterator, List, Tuple

import pytest
from server_process import until
from standin_cuda import StandinCuda
from stublet.shm.cuda.arena import GRANULE
from stublet.shm.cuda.driver import Driver
from stublet.shm.dtype import BY_NAME
from stublet.stub.cuda import devices
from stublet.stub.cuda.memory import LentMemory
from stublet.stub.cuda.releases import releases
from stublet.stub.cuda.segment import ImportedSegment, OwnSegment
from stublet.stub.error import TritonModelException

KEY = (5, 512)


@pytest.fixture
def dropped() -> Iterator[Any]:
    """What was given back."""
    releases.dropped.clear()
    yield releases.dropped
    releases.dropped.clear()


@pytest.fixture
def memory(library: StandinCuda, dropped: Any) -> List[LentMemory]:
    """A block in a list, which alone holds it."""
    cuda = devices.devices()
    with cuda.on(cuda.get(0)) as driver:
        base = driver.allocate(GRANULE)
    return [LentMemory(OwnSegment(5, GRANULE, bytes(64), (cuda, cuda.get(0)), base, lambda *_: None), 512, 100)]


def all_given_back(dropped: Any) -> List[Tuple[int, int]]:
    """After everything that the thread was given so far."""
    done: List[None] = []
    releases.later(lambda: done.append(None))
    until(lambda: bool(done))
    return list(dropped)


def test_one_that_nobody_looked_at_goes_back_with_the_answer(memory: List[LentMemory], dropped: Any) -> None:
    lease = memory[0].lease
    memory.clear()
    assert not lease.settle() and all_given_back(dropped) == []


def test_one_that_is_gone_before_the_answer_is_fenced(memory: List[LentMemory], dropped: Any, library: StandinCuda) -> None:
    lease = memory[0].lease
    memory[0].address()
    memory.clear()
    assert all_given_back(dropped) == [], "the server does not know yet that it is kept"
    library.calls.clear()
    assert lease.settle() and all_given_back(dropped) == [KEY]
    assert library.calls.count("cuEventRecord") == library.calls.count("cuEventSynchronize") == 1


def test_one_that_is_gone_after_the_answer(memory: List[LentMemory], dropped: Any) -> None:
    lease = memory[0].lease
    assert lease.settle() and all_given_back(dropped) == []
    memory.clear()
    assert all_given_back(dropped) == [KEY]


def test_both_at_once_give_it_back_once(memory: List[LentMemory], dropped: Any) -> None:
    lease = memory[0].lease
    memory[0].address()
    lease._settled = True  # by another thread, which has not seen yet that it is gone
    memory.clear()
    assert lease.settle() and all_given_back(dropped) == [KEY]


@pytest.mark.parametrize(
    "streams, events, everything", [([None], 1, 1), ([1], 1, 0), ([1, 1], 1, 0), ([1, None], 1, 1), ([2], 1, 1), ([-1], 1, 1)]
)
def test_what_is_waited_for(
    memory: List[LentMemory], dropped: Any, library: StandinCuda, streams: List[Any], events: int, everything: int
) -> None:
    for stream in streams:
        memory[0].address(stream)
    memory[0].lease.settle()
    library.calls.clear()
    memory.clear()
    assert all_given_back(dropped) == [KEY]
    assert (library.calls.count("cuEventRecord"), library.calls.count("cuCtxSynchronize")) == (events, everything)


class CupyStream:
    """A stream that is destroyed with the last reference, and the module of which it is the current one."""

    def __init__(self) -> None:
        with devices.devices().driver.on(0):
            self.ptr = devices.devices().driver.create_stream()

    @property
    def cuda(self) -> Any:
        return SimpleNamespace(get_current_stream=lambda: self)

    def __del__(self) -> None:
        with devices.devices().driver.on(0):
            devices.devices().driver.destroy_stream(self.ptr)


def test_a_stream_is_there_until_it_was_waited_for(
    memory: List[LentMemory], dropped: Any, library: StandinCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [CupyStream()]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", streams[0])
        memory[0].address(streams[0].ptr)
    number = streams.pop().ptr
    assert number in library.streams
    memory[0].lease.settle()
    library.calls.clear()
    memory.clear()
    assert all_given_back(dropped) == [KEY]
    assert (library.calls.count("cuEventRecord"), library.calls.count("cuCtxSynchronize")) == (2, 0), "that one, and the legacy one"
    until(lambda: number in library.destroyed)


def test_a_tensor_and_its_capsules_hold_it(memory: List[LentMemory], dropped: Any) -> None:
    tensor = memory[0].tensor("X", BY_NAME["UINT8"], (100,), 0, 100)
    memory[0].lease.settle()
    memory.clear()
    held = tensor.__dlpack__(stream=1)
    del tensor
    gc.collect()
    assert all_given_back(dropped) == []
    del held
    assert all_given_back(dropped) == [KEY]


def test_a_fence_that_fails_does_not_keep_it(
    memory: List[LentMemory], dropped: Any, library: StandinCuda, capfd: pytest.CaptureFixture[str]
) -> None:
    memory[0].address()
    memory[0].lease.settle()
    library.fails["cuEventCreate"] = 801
    memory.clear()
    assert all_given_back(dropped) == [KEY] and "CUDA_ERROR_NOT_SUPPORTED" in capfd.readouterr().err


@pytest.mark.parametrize("size", [GRANULE, 2 * GRANULE])
def test_a_segment_that_is_smaller_than_it_was_said_is_refused(library: StandinCuda, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = devices.devices()
    refused: List[Any] = []
    with cuda.on(cuda.get(0)) as driver:
        base = driver.allocate(GRANULE)
    monkeypatch.setattr(Driver, "open", lambda self, handle: base)
    monkeypatch.setattr(Driver, "close", lambda self, pointer: None)
    segment = ImportedSegment(7, size, cuda.get(0).uuid, bytes(64), lambda *why: refused.append(why), lambda *_: None)
    if size == GRANULE:
        assert segment.open(cuda, cuda.get(0)) == base and not refused
    else:
        with pytest.raises(TritonModelException, match=f"has {GRANULE} bytes instead of {size}"):
            segment.open(cuda, cuda.get(0))
        assert refused == [(7, f"it has {GRANULE} bytes instead of {size}")]
    segment.close()


def test_who_closes_a_segment_does_not_wait_for_the_gpu(library: StandinCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = devices.devices()
    closed: List[int] = []
    is_idle = threading.Event()

    def close(_: Driver, base: int) -> None:
        is_idle.wait()
        closed.append(base)

    with cuda.on(cuda.get(0)) as driver:
        base = driver.allocate(GRANULE)
    monkeypatch.setattr(Driver, "open", lambda self, handle: base)
    monkeypatch.setattr(Driver, "close", close)
    told: List[bool] = []
    segment = ImportedSegment(7, GRANULE, cuda.get(0).uuid, bytes(64), lambda *_: None, lambda _, done: told.append(done))
    segment.open(cuda, cuda.get(0))
    control_thread = threading.Thread(target=segment.close)
    control_thread.start()
    try:
        until(lambda: not control_thread.is_alive())
        assert not closed and not told and not segment.shareable
    finally:
        is_idle.set()
        control_thread.join()
    until(lambda: told == [True])
    assert closed == [base]


def test_a_segment_that_nobody_has_looked_at_is_closed_at_once(library: StandinCuda) -> None:
    told: List[bool] = []
    ImportedSegment(7, GRANULE, bytes(16), bytes(64), lambda *_: None, lambda _, done: told.append(done)).close()
    assert told == [True]


def test_a_segment_that_cannot_be_closed_is_not_taken_to_be(library: StandinCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = devices.devices()
    told: List[bool] = []
    with cuda.on(cuda.get(0)) as driver:
        base = driver.allocate(GRANULE)
    monkeypatch.setattr(Driver, "open", lambda self, handle: base)
    segment = ImportedSegment(7, GRANULE, cuda.get(0).uuid, bytes(64), lambda *_: None, lambda _, done: told.append(done))
    segment.open(cuda, cuda.get(0))
    releases.start()
    library.fails["cuIpcCloseMemHandle"] = 400
    segment.close()
    until(lambda: told == [False])
    monkeypatch.setattr(Driver, "close", lambda self, pointer: None)
    segment.close()
    until(lambda: told == [False, True])


def test_a_device_that_this_process_does_not_see(library: StandinCuda, dropped: Any) -> None:
    segment = ImportedSegment(7, GRANULE, b"another device__", bytes(64), lambda *_: None, lambda *_: None)
    memory = LentMemory(segment, 0, 8)
    with pytest.raises(TritonModelException, match="not visible to this process"):
        memory.address()
