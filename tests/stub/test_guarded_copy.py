"""Copies from and to a file that another process cuts short."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import Iterator, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_memory import ClientFile, client_file
from stublet.shm.errors import OutOfSharedMemory
from stublet.stub import guarded_copy
from stublet.stub.guarded_copy import Lost, Window

PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE
PATTERN = np.random.default_rng(0).integers(1, 256, SIZE, np.uint8)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def read(window: Window, offset: int, nbytes: int) -> np.ndarray:
    found = np.zeros(nbytes, np.uint8)
    window.read(offset, address(found), nbytes)
    return found


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
        window.write(offset, address(other), nbytes)
        expected = PATTERN.copy()
        expected[start + offset : start + offset + nbytes] = other
        assert file.bytes_at(0, SIZE) == expected.tobytes()
        window.close()


@pytest.mark.parametrize("offset, nbytes", [(-1, 1), (0, SIZE + 1), (SIZE, 1), (1, SIZE), (0, -1), (SIZE + 1, 0)])
def test_what_lies_outside_is_not_touched(window: Window, offset: int, nbytes: int) -> None:
    for copy in (window.read, window.write):
        with pytest.raises(ValueError, match=f"{nbytes} bytes at {offset} lie outside a window of {SIZE} bytes"):
            copy(offset, address(PATTERN), nbytes)


@pytest.fixture(params=["seen", "unseen"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file was cut short before its size was looked at, or just after."""
    if request.param == "unseen":
        monkeypatch.setattr(guarded_copy, "_size_of", lambda fd: 2**62)


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
                copy(0, address(mine), SIZE)
        copy(0, address(mine), left)  # what is left of it is there
        assert os.fstat(file.fd).st_size == left, "a file that was cut short does not grow again by what is written"
        file.resize(SIZE)
        file.put(PATTERN)
        assert np.array_equal(read(window, 0, SIZE), PATTERN)


def test_a_file_that_was_cut_within_a_page(file: ClientFile, window: Window) -> None:
    mine = read(window, 0, SIZE)
    file.resize(SIZE - 1)
    for copy in (window.read, window.write):
        copy(0, address(mine), SIZE - 1)
        with pytest.raises(Lost):
            copy(0, address(mine), SIZE)


def test_a_file_without_a_name_is_as_good_as_any(file: ClientFile, window: Window) -> None:
    file.unlink()
    assert np.array_equal(read(window, 0, SIZE), PATTERN)


@pytest.mark.usefixtures("cut")
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
                    copy(0, address(mine), size)
                    outcomes.append(True)
                except Lost:
                    outcomes.append(False)
            cutter.kill()
        window.close()


@pytest.mark.usefixtures("cut")
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
    from stublet.stub.guarded_copy import Lost, Window
    import ctypes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fd = os.memfd_create("mine")
    os.ftruncate(fd, mmap.PAGESIZE)
    window = Window(os.dup(fd), 0, mmap.PAGESIZE)
    other = os.memfd_create("foreign")
    os.ftruncate(other, mmap.PAGESIZE)
    foreign = mmap.mmap(other, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(foreign))
    os.ftruncate(other, 0)
    print("so far", flush=True)
"""


@pytest.mark.parametrize(
    "touch",
    ["foreign[0]", "window.write(0, address, 1)", "window.read(0, address, 1)"],
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
