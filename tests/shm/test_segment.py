"""Segments: reserved, without a name, mapped from a descriptor that is not trusted."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import signal
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Tuple, Type

import posix_ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.shm import segment as segment_module
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.shm.segment import EAGER_BYTES, PAGE, Segment, SegmentTable

ADD_SEALS, SEAL_WRITE, MFD_NOEXEC_SEAL = 1033, 8, 8
MADV_REMOVE = 9


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
    assert target(segment) == "/memfd:stublet (deleted)"
    assert not os.get_inheritable(segment.fd)
    assert blocks(segment.fd) == rounded
    segment.memory[rounded - 1] = 1
    segment.close()
    segment.close()
    assert segment.fd is None and segment.memory[rounded - 1] == 1, "the mapping outlives the descriptor"


@pytest.mark.parametrize("as_it_fills", [False, True])
def test_nobody_changes_the_size_of_a_segment(as_it_fills: bool) -> None:
    """Touching a page that is gone would be a SIGBUS in every process that maps it."""
    segment = Segment.create(3, EAGER_BYTES + 1, as_it_fills)
    fd = segment.fd
    assert fd is not None
    for size in (0, PAGE, 2 * segment.size):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        os.posix_fallocate(fd, 0, 2 * segment.size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, ADD_SEALS, SEAL_WRITE)
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(reopened, 0)
    os.close(reopened)
    segment.close()


def test_a_hole_in_a_segment_is_zeros() -> None:
    """Which no seal prevents."""
    segment = Segment.create(3, 2 * PAGE)
    segment.memory[:] = bytes([7]) * len(segment.memory)
    segment.memory.madvise(MADV_REMOVE, 0, PAGE)
    assert segment.memory[:PAGE] == bytes(PAGE) and segment.memory[PAGE:] == bytes([7]) * PAGE
    segment.close()


def test_the_memory_of_a_segment_can_be_given_back_while_others_map_it() -> None:
    segment = Segment.create(3, 2 * PAGE)
    assert segment.fd is not None
    fd = os.dup(segment.fd)
    segment.discard()
    assert (blocks(fd), segment.fd) == (0, None)
    os.close(fd)


def without_memfd(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    """As in a sandbox that does not permit it."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", refuse)


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOSYS, None])
@pytest.mark.parametrize("as_it_fills", [False, True])
def test_dev_shm_serves_where_there_is_no_memfd(monkeypatch: pytest.MonkeyPatch, refusal: Optional[int], as_it_fills: bool) -> None:
    if refusal is None:
        monkeypatch.delattr(os, "memfd_create")
    else:
        without_memfd(monkeypatch, refusal)
    segment = Segment.create(3, EAGER_BYTES + 1, as_it_fills)
    fd = segment.fd
    assert fd is not None
    assert target(segment).startswith("/dev/shm/stublet-") and target(segment).endswith(" (deleted)")
    assert not [name for name in os.listdir("/dev/shm") if target(segment).startswith(f"/dev/shm/{name}")]
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd)
    assert blocks(fd) == segment.size, "a full /dev/shm is an error here, not a SIGBUS later"
    segment.reserve(segment.size)
    assert segment.reserved == segment.size
    segment.close()


def test_names_cannot_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    without_memfd(monkeypatch)
    segments = [Segment.create(0, 1) for _ in range(2)]
    names = {target(segment).removesuffix(" (deleted)").rpartition("-")[2] for segment in segments}
    assert len(names) == 2 and all(len(name) == 32 for name in names)
    for segment in segments:
        segment.close()


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (OSError, (errno.EROFS, "Read-only file system")),
        (posix_ipc.ExistentialError, ("No shared memory exists with the specified name",)),
        (posix_ipc.PermissionsError, ("No permission to modify this segment",)),
    ],
)
def test_without_either_it_is_told_why(monkeypatch: pytest.MonkeyPatch, kind: Type[Exception], arguments: Tuple[Any, ...]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind(*arguments)

    without_memfd(monkeypatch)
    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    with pytest.raises(OutOfSharedMemory, match=f"^{PAGE} bytes of shared memory cannot be had: .*{arguments[-1]}"):
        Segment.create(0, 100)


def test_a_full_dev_shm_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    without_memfd(monkeypatch)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutOfSharedMemory, match=r"/dev/shm is full: enlarge it \(docker run --shm-size=1g\)"):
        Segment.create(0, 100)


def test_kernels_before_6_3_make_segments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags & MFD_NOEXEC_SEAL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    segment = Segment.create(0, 100)
    assert segment.fd is not None and target(segment) == "/memfd:stublet (deleted)"
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)
    segment.close()


def test_without_descriptors_it_is_told_what_to_do() -> None:
    lowest = os.dup(0)
    os.close(lowest)
    with limit(resource.RLIMIT_NOFILE, lowest + 1):
        with pytest.raises(OutOfSharedMemory, match=r"cannot be mapped: Too many open files: .* raise the limit .*\(ulimit -n\)$"):
            Segment.create(0, 100)
        with limit(resource.RLIMIT_NOFILE, lowest), pytest.raises(OutOfSharedMemory, match="cannot be had: Too many open files: "):
            Segment.create(0, 100)
    Segment.create(0, 100).close()


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


@pytest.mark.parametrize("map_pages", [True, False])
def test_an_attached_segment_is_the_same_memory(map_pages: bool) -> None:
    made = Segment.create(5, 2 * PAGE)
    assert made.fd is not None
    fd = os.dup(made.fd)
    attached = Segment.attach(5, fd, PAGE, map_pages)
    assert (attached.id, attached.size, attached.reserved, attached.fd) == (5, PAGE, PAGE, fd)
    made.memory[7] = 42
    assert attached.memory[7] == 42
    attached.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert attached.memory[7] == 42 and attached.fd is None
    made.close()


def test_a_segment_that_fills_is_attached_without_reserving_it() -> None:
    """As the parent makes those for requests: whoever attaches it must not take memory for all of it."""
    made = Segment.create(5, EAGER_BYTES + 1, as_it_fills=True)
    assert made.fd is not None and made.reserved == 0 and blocks(made.fd) == 0
    attached = Segment.attach(5, os.dup(made.fd), made.size, map_pages=False)
    assert blocks(made.fd) == 0
    made.reserve(PAGE)
    assert PAGE <= made.reserved <= made.size and blocks(made.fd) == made.reserved
    made.memory[PAGE - 1] = 42
    assert attached.memory[PAGE - 1] == 42
    before = made.reserved
    made.reserve(before)
    assert made.reserved == before, "it is reserved already"
    made.reserve(made.size)
    assert made.reserved == made.size == blocks(made.fd)
    attached.close()
    made.close()


def test_a_small_segment_is_reserved_at_once() -> None:
    made = Segment.create(5, EAGER_BYTES, as_it_fills=True)
    assert made.fd is not None and made.reserved == made.size == blocks(made.fd)
    made.close()


def test_a_segment_that_cannot_fill_any_further_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Segment.create(5, EAGER_BYTES + 1, as_it_fills=True)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(OutOfSharedMemory, match=r"^\d+ bytes of shared memory cannot be had: No space left on device$"):
            made.reserve(PAGE)
    assert made.reserved == 0
    made.reserve(PAGE)
    assert made.reserved >= PAGE
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


def test_what_is_written_to_the_private_mapping_is_seen_by_nobody_else() -> None:
    segment = Segment.create(5, 2 * PAGE)
    private = segment.private(0)
    assert segment.private(0) is private and len(private) == segment.size
    segment.memory[0] = segment.memory[PAGE] = 1
    assert private[0] == private[PAGE] == 1, "what others write is seen"
    private[0] = 2
    assert segment.memory[0] == 1
    segment.memory[0] = segment.memory[PAGE] = 3
    assert private[0] == 2 and private[PAGE] == 3, "but not in pages that were written to"
    private.madvise(mmap.MADV_DONTNEED, 0, PAGE)
    assert private[0] == 3
    assert segment.shareable
    segment.close()
    assert segment.private(0) is private and not segment.shareable


def test_a_private_mapping_needs_the_descriptor() -> None:
    segment = Segment.create(5, PAGE)
    segment.close()
    with pytest.raises(OutOfSharedMemory, match=r"^the descriptor of segment 5 is closed$"):
        segment.private(0)


def test_a_private_mapping_that_there_is_no_room_for() -> None:
    size = 64 << 20
    segment = Segment.create(5, size)
    with open("/proc/self/statm") as statm:
        address_space = int(statm.read().split()[0]) * PAGE
    with limit(resource.RLIMIT_AS, address_space + (16 << 20)):
        with pytest.raises(OutOfSharedMemory, match=f"^{size} bytes of shared memory cannot be mapped: Cannot allocate memory$"):
            segment.private(0)
    segment.private(0)
    segment.close()


def test_a_segment_that_nobody_holds_gives_its_descriptor_back() -> None:
    segment = Segment.create(5, PAGE)
    assert segment.fd is not None
    number, file = segment.fd, os.fstat(segment.fd).st_ino
    del segment
    try:
        assert os.fstat(number).st_ino != file
    except OSError as error:
        assert error.errno == errno.EBADF


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
