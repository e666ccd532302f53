"""Segments: reserved, without a name, mapped from a descriptor that is not trusted."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from contextlib import contextmanager
from typing import Any, Iterator, Tuple, Type

import posix_ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.shm import segment as segment_module
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.shm.segment import PAGE, Segment, SegmentTable


def target(segment: Segment) -> str:
    return os.readlink(f"/proc/self/fd/{segment.fd}")


def blocks(fd: int) -> int:
    """Bytes that the system has reserved for a file."""
    return os.fstat(fd).st_blocks * 512


@contextmanager
def limit(which: int, value: int) -> Iterator[None]:
    """Lowers a limit of this process."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


@pytest.mark.parametrize("size, rounded", [(1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), (3 << 20, 3 << 20)])
def test_a_segment_is_reserved_and_has_no_name(size: int, rounded: int) -> None:
    segment = Segment.create(3, size)
    assert segment.fd is not None
    assert (segment.id, segment.size, len(segment.memory)) == (3, rounded, rounded)
    assert target(segment).startswith("/dev/shm/stublet-") and target(segment).endswith(" (deleted)")
    assert not [name for name in os.listdir("/dev/shm") if target(segment).startswith(f"/dev/shm/{name}")]
    assert os.fstat(segment.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(segment.fd)
    assert blocks(segment.fd) == rounded
    segment.memory[rounded - 1] = 1
    segment.close()
    segment.close()
    assert segment.fd is None and segment.memory[rounded - 1] == 1, "the mapping outlives the descriptor"


def test_names_cannot_be_guessed() -> None:
    segments = [Segment.create(0, 1) for _ in range(2)]
    names = {target(segment).removesuffix(" (deleted)").rpartition("-")[2] for segment in segments}
    assert len(names) == 2 and all(len(name) == 32 for name in names)
    for segment in segments:
        segment.close()


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (OSError, (errno.ENOSPC, "No space left on device")),
        (OSError, (errno.EROFS, "Read-only file system")),
        (posix_ipc.ExistentialError, ("No shared memory exists with the specified name",)),
        (posix_ipc.PermissionsError, ("No permission to modify this segment",)),
    ],
)
def test_memfd_serves_where_dev_shm_cannot(monkeypatch: pytest.MonkeyPatch, kind: Type[Exception], arguments: Tuple[Any, ...]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind(*arguments)

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    segment = Segment.create(0, 100)
    assert segment.fd is not None
    assert target(segment) == "/memfd:stublet (deleted)"
    assert blocks(segment.fd) == segment.size == PAGE
    segment.close()


def test_a_segment_larger_than_the_machine_is_refused_before_it_is_tried() -> None:
    with pytest.raises(OutOfSharedMemory, match=rf"^{1 << 50} bytes of shared memory are needed, but the machine has \d+ bytes available$"):
        Segment.create(0, 1 << 50)


def test_a_segment_that_cannot_be_reserved_is_refused_at_once() -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with limit(resource.RLIMIT_FSIZE, 1 << 20), pytest.raises(OutOfSharedMemory, match="cannot be had: File too large"):
            Segment.create(0, 2 << 20)
    finally:
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("attach", [False, True])
def test_a_segment_that_cannot_be_mapped_is_refused(attach: bool) -> None:
    size = 64 << 20
    fd = os.memfd_create("stublet-test")
    os.ftruncate(fd, size)
    with open("/proc/self/statm") as statm:
        address_space = int(statm.read().split()[0]) * PAGE
    with limit(resource.RLIMIT_AS, address_space + (16 << 20)):
        with pytest.raises(OutOfSharedMemory, match=f"^{size} bytes of shared memory cannot be mapped: Cannot allocate memory$"):
            Segment.attach(0, fd, size) if attach else Segment.create(0, size)
    if not attach:
        os.close(fd)


def test_an_attached_segment_is_the_same_memory() -> None:
    made = Segment.create(5, 2 * PAGE)
    assert made.fd is not None
    fd = os.dup(made.fd)
    attached = Segment.attach(5, fd, PAGE)
    assert (attached.id, attached.size, attached.fd) == (5, PAGE, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    made.memory[7] = 42
    assert attached.memory[7] == 42
    made.close()


@pytest.mark.parametrize("announced", [PAGE + 1, 1 << 60, 1 << 70, 0, -1])
def test_a_descriptor_that_holds_less_than_announced_is_refused(announced: int) -> None:
    fd = os.memfd_create("stublet-test")
    os.ftruncate(fd, PAGE)
    with pytest.raises(ProtocolError, match=f"^segment 9 is announced with {announced} bytes but holds {PAGE}$"):
        Segment.attach(9, fd, announced)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_descriptor_of_something_else_is_refused() -> None:
    near, far = os.pipe()
    with pytest.raises(ProtocolError):
        Segment.attach(9, near, 1)
    os.close(far)


def test_old_kernels_map_without_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "_MADV_POPULATE_WRITE", 9999)
    monkeypatch.setattr(segment_module, "_MADV_HUGEPAGE", 9999)
    segment = Segment.create(0, 2 << 20)
    assert isinstance(segment.memory, mmap.mmap)
    segment.close()


SIZE = 2 * PAGE
NUMBERS = st.one_of(st.integers(-2, SIZE + 2), st.integers())


@pytest.fixture(scope="module")
def table() -> SegmentTable:
    segment = Segment.create(4, SIZE)
    segment.close()
    return SegmentTable({4: segment})


@given(segment_id=st.one_of(st.just(4), st.integers()), offset=NUMBERS, nbytes=NUMBERS)
def test_a_location_is_within_its_segment_or_refused(table: SegmentTable, segment_id: int, offset: int, nbytes: int) -> None:
    inside = segment_id == 4 and 0 <= offset <= SIZE and 0 <= nbytes <= SIZE - offset
    if inside:
        assert table.locate(segment_id, offset, nbytes) is table[4]
    else:
        with pytest.raises(
            ProtocolError, match="^segment .* is not known$" if segment_id != 4 else f"lie outside segment 4 of {SIZE} bytes$"
        ):
            table.locate(segment_id, offset, nbytes)
