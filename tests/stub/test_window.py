"""Reading and writing a file that another process cuts short."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_memory import ClientFile, client_file
from stublet.shm.errors import OutOfSharedMemory
from stublet.stub import bus_guard
from stublet.stub import window as window_module
from stublet.stub.bus_guard import GuardedMapping
from stublet.stub.window import Lost, Window

PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE
PATTERN = np.random.default_rng(0).integers(1, 256, SIZE, np.uint8)


def read(window: Window, offset: int, nbytes: int) -> np.ndarray:
    found = np.zeros(nbytes, np.uint8)
    window.read(offset, found)
    return found


@pytest.fixture(params=["guarded", "not to be guarded"])
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mappings, and as it is where nothing can be guarded."""
    if request.param != "guarded":
        monkeypatch.setattr(window_module, "guarded", lambda *_: None)


@pytest.fixture
def file() -> Iterator[ClientFile]:
    with client_file(SIZE) as file:
        file.put(PATTERN)
        yield file


@pytest.fixture
def window(file: ClientFile) -> Iterator[Window]:
    window = Window(os.dup(file.fd), 0, SIZE)
    yield window
    window.close()


@given(start=st.integers(0, SIZE - 1), data=st.data())
def test_bytes_come_from_where_they_are_and_go_where_they_should(start: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, SIZE - start), "size of the window")
    offset = data.draw(st.integers(0, size), "offset")
    nbytes = data.draw(st.integers(0, size - offset), "bytes")
    with client_file(SIZE) as file:
        file.put(PATTERN)
        window = Window(os.dup(file.fd), start, size)
        assert np.array_equal(read(window, offset, nbytes), PATTERN[start + offset : start + offset + nbytes])
        other = 255 - PATTERN[:nbytes]
        window.write(offset, other)
        expected = PATTERN.copy()
        expected[start + offset : start + offset + nbytes] = other
        assert file.bytes_at(0, SIZE) == expected.tobytes()
        window.close()


@pytest.mark.parametrize("offset, nbytes", [(-1, 1), (0, SIZE + 1), (SIZE, 1), (1, SIZE), (SIZE + 1, 0)])
def test_what_lies_outside_is_not_touched(window: Window, offset: int, nbytes: int) -> None:
    for copy in (window.read, window.write):
        with pytest.raises(ValueError, match=f"{nbytes} bytes at {offset} lie outside a window of {SIZE} bytes"):
            copy(offset, np.zeros(nbytes, np.uint8))


@pytest.fixture(params=["seen", "unseen", "not to be guarded"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file was cut short before its size was looked at, or just after; or where nothing can be guarded."""
    if request.param == "unseen":
        monkeypatch.setattr(Window, "check", lambda *_: None)
    elif request.param != "seen":
        monkeypatch.setattr(window_module, "guarded", lambda *_: None)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("mapped", [False, True], ids=["never copied", "copied before"])
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_file_that_was_cut_short_is_an_error_until_it_is_whole_again(file: ClientFile, window: Window, mapped: bool, write: bool) -> None:
    if mapped:
        read(window, 0, SIZE)
    copy = window.write if write else window.read
    mine = np.zeros(SIZE, np.uint8)
    for left in (0, PAGE, SIZE - PAGE):
        file.resize(left)
        for _ in range(2):
            with pytest.raises(Lost):
                copy(0, mine)
        copy(0, mine[:left])  # what is left of it is there
        assert os.fstat(file.fd).st_size == left, "a file that was cut short does not grow again by what is written"
        file.resize(SIZE)
        file.put(PATTERN)
        assert np.array_equal(read(window, 0, SIZE), PATTERN)


@pytest.mark.usefixtures("guard")
def test_a_file_that_was_cut_within_a_page(file: ClientFile, window: Window) -> None:
    mine = read(window, 0, SIZE)
    file.resize(SIZE - 1)
    for copy in (window.read, window.write):
        copy(0, mine[:-1])
        with pytest.raises(Lost):
            copy(0, mine)


@pytest.mark.usefixtures("guard")
def test_a_file_without_a_name_is_as_good_as_any(file: ClientFile, window: Window) -> None:
    file.unlink()
    assert np.array_equal(read(window, 0, SIZE), PATTERN)


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_file_that_is_cut_short_during_copies(write: bool) -> None:
    size = 64 * PAGE
    with client_file(size) as file:
        window = Window(os.dup(file.fd), 0, size)
        code = f"import os\nwhile True:\n os.ftruncate({file.fd}, 0)\n os.ftruncate({file.fd}, {size})"
        with subprocess.Popen([sys.executable, "-c", code], pass_fds=[file.fd]) as cutter:
            mine = np.ones(size, np.uint8)
            copy = window.write if write else window.read
            outcomes: List[bool] = []
            deadline = time.monotonic() + 30
            while min(outcomes.count(True), outcomes.count(False)) < 50:
                assert time.monotonic() < deadline, f"{outcomes.count(True)} of {len(outcomes)} copies came through"
                try:
                    copy(0, mine)
                    outcomes.append(True)
                except Lost:
                    outcomes.append(False)
            cutter.kill()
        window.close()


def test_a_signal_keeps_the_handler_that_it_had(file: ClientFile, window: Window) -> None:
    came: List[int] = []
    former = signal.signal(signal.SIGBUS, lambda signum, _: came.append(signum))
    try:
        file.resize(0)
        with pytest.raises(Lost):
            read(window, 0, 1)
        assert not came
        signal.raise_signal(signal.SIGBUS)
        assert came == [signal.SIGBUS]
    finally:
        signal.signal(signal.SIGBUS, former)


FOREIGN = """
    import mmap, os, resource
    from stublet.stub.window import Lost, Window
    import numpy as np
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fd = os.memfd_create("mine")
    os.ftruncate(fd, mmap.PAGESIZE)
    window = Window(os.dup(fd), 0, mmap.PAGESIZE)
    other = os.memfd_create("foreign")
    os.ftruncate(other, mmap.PAGESIZE)
    foreign = np.frombuffer(mmap.mmap(other, mmap.PAGESIZE), np.uint8)
    os.ftruncate(other, 0)
    print("so far", flush=True)
"""


@pytest.mark.parametrize(
    "touch",
    ["foreign[0]", "window.write(0, foreign)", "window.read(0, foreign)"],
    ids=["elsewhere", "source of a copy", "target of a copy"],
)
def test_a_fault_of_anything_else_has_its_usual_effect(touch: str) -> None:
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(FOREIGN) + touch], capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.returncode) == ("so far\n", -signal.SIGBUS), ended.stderr


def test_nothing_can_be_copied_after_the_end(file: ClientFile) -> None:
    window = Window(os.dup(file.fd), 0, SIZE)
    read(window, 0, SIZE)
    window.close()
    window.close()
    with pytest.raises(Lost):
        read(window, 0, 1)


def test_a_window_that_is_dropped_gives_back_mapping_and_descriptor(file: ClientFile) -> None:
    def mapped() -> bool:
        with open("/proc/self/maps") as maps:
            return file.path in maps.read()

    window = Window(os.dup(file.fd), 0, SIZE)
    read(window, 0, SIZE)
    assert mapped()
    del window
    assert not mapped()


def test_a_mapping_for_which_there_is_no_room(file: ClientFile) -> None:
    file.resize(2**47)
    window = Window(os.dup(file.fd), 0, 2**47)
    with pytest.raises(OutOfSharedMemory, match="cannot be mapped"):
        read(window, 0, 1)
    window.close()


# ---- views ----


def private(window: Window, index: int = 0) -> GuardedMapping:
    mapping = window.private(index)
    assert mapping is not None
    return mapping


def seen(window: Window, index: int = 0) -> np.ndarray:
    return np.frombuffer(private(window, index).memory, np.uint8)


def test_a_view_shows_what_the_client_writes_and_keeps_what_is_written_to_it(file: ClientFile, window: Window) -> None:
    view, other = seen(window), seen(window, 1)
    assert np.array_equal(view, PATTERN) and private(window).memory is private(window).memory
    view[PAGE] = 0
    file.put(255 - PATTERN)
    assert np.array_equal(view[:PAGE], 255 - PATTERN[:PAGE]) and np.array_equal(other, 255 - PATTERN)
    assert np.array_equal(view[PAGE + 1 : 2 * PAGE], PATTERN[PAGE + 1 : 2 * PAGE]) and view[PAGE] == 0
    assert np.array_equal(read(window, 0, SIZE), 255 - PATTERN)


def test_pages_that_are_lost_are_zeros(file: ClientFile, window: Window) -> None:
    mapping, view = private(window), seen(window)
    assert view[0] and not mapping.lost
    file.resize(PAGE + 8)
    assert not np.any(view[PAGE + 8 :]) and np.array_equal(view[: PAGE + 8], PATTERN[: PAGE + 8])
    assert mapping.lost
    file.resize(SIZE)
    file.put(PATTERN)
    assert not np.any(view[2 * PAGE :]), "they stay so, because it is known that they were lost"
    assert private(window) is not mapping and np.array_equal(seen(window), PATTERN)


def test_pages_that_are_kept_outlive_the_file(file: ClientFile, window: Window) -> None:
    mapping, view = private(window), seen(window)
    view[PAGE] ^= 1
    before = view.copy()
    mapping.freeze(mapping.address + PAGE + 5, mapping.address + 2 * PAGE + 5)
    file.put(255 - PATTERN)
    file.resize(0)
    assert np.array_equal(view[PAGE : 3 * PAGE], before[PAGE : 3 * PAGE]) and not mapping.lost
    file.resize(SIZE)
    file.put(PATTERN)
    assert private(window) is not mapping and np.array_equal(seen(window), PATTERN)


def test_a_view_outlives_its_window(file: ClientFile) -> None:
    window = Window(os.dup(file.fd), 0, SIZE)
    view = seen(window)
    window.close()
    assert np.array_equal(view, PATTERN)
    file.resize(0)
    assert not np.any(view), "still guarded"


def test_faults_in_many_threads(file: ClientFile, window: Window) -> None:
    views = [seen(window, index) for index in range(8)]
    file.resize(0)
    with ThreadPoolExecutor(len(views)) as pool:
        assert not any(pool.map(np.any, views))


def test_there_is_an_end_to_what_can_be_guarded(file: ClientFile, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = bus_guard._handler()
    assert handler is not None
    monkeypatch.setattr(handler, "_free", handler._free[-1:])
    window = Window(os.dup(file.fd), 0, SIZE)
    assert window.private(0) is not None and window.private(1) is None
    assert np.array_equal(read(window, 0, SIZE), PATTERN), "then bytes are copied"
    window.close()
    window = Window(os.dup(file.fd), 0, SIZE)
    assert window.private(0) is not None, "with the mapping its place is free again"
    window.close()


def test_a_model_may_set_a_handler_of_its_own(file: ClientFile, window: Window) -> None:
    view = seen(window)
    came: List[int] = []
    former = signal.signal(signal.SIGBUS, lambda signum, _: came.append(signum))
    try:
        file.resize(0)
        private(window)
        assert not np.any(view) and not came
    finally:
        signal.signal(signal.SIGBUS, former)


def test_a_forked_process_has_a_table_of_its_own(file: ClientFile, window: Window) -> None:
    mapping, view = private(window), seen(window)
    pid = os.fork()
    if pid == 0:
        file.resize(0)
        os._exit(int(np.any(view)) + 2 * (not mapping.lost))
    assert os.waitpid(pid, 0)[1] == 0
    assert not mapping.lost
    file.resize(SIZE)
    file.put(PATTERN)
    assert np.array_equal(view, PATTERN)
