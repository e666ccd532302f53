"""The registry of clients' shared memory: every row of its table of errors, and who keeps a region in it (spec 6.11)."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_memory import ClientFile, client_file
from stublet.parent import client_regions
from stublet.parent.client_memory import ClientMemory, RegionSlice
from stublet.parent.client_regions import CUDA_HANDLE_BYTES, ClientRegion
from stublet.parent.errors import AlreadyExists, InternalError, InvalidArgument, NotFound, ServerError, Unsupported
from stublet.shm.message import ErrorCode

SIZE = 4096
MOST = 2**64 - 1


class Registry(ClientMemory):
    """One that notes what the stubs are told to forget."""

    def __init__(self, allowed: bool = True) -> None:
        self.forgotten: List[int] = []
        super().__init__(allowed, itertools.count(1).__next__, self._note)

    def _note(self, ids: Sequence[int]) -> None:
        self.forgotten.extend(ids)

    def names(self) -> List[str]:
        return [row["name"] for row in self.system_status()]


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    yield registry
    registry.close()


@pytest.fixture
def file() -> Iterator[ClientFile]:
    with client_file(SIZE) as file:
        yield file


def refusal(function: Callable[[], Any]) -> ServerError:
    with pytest.raises(ServerError) as raised:
        function()
    return raised.value


# ---- registering ----


def test_a_region_is_listed_as_it_was_registered(registry: Registry, file: ClientFile) -> None:
    registry.register_system("all", file.key, 0, SIZE)
    registry.register_system("part", file.key.strip("/"), 100, 7)
    registry.register_system("slashes", "//" + file.key, SIZE - 1, 1)
    rows = [
        {"name": "all", "key": file.key, "offset": 0, "byte_size": SIZE},
        {"name": "part", "key": file.key[1:], "offset": 100, "byte_size": 7},
        {"name": "slashes", "key": "//" + file.key, "offset": SIZE - 1, "byte_size": 1},
    ]
    assert registry.system_status() == rows
    assert registry.system_status("part") == rows[1:2]


RESERVED = "triton_python_backend_shm_region_"
RESERVED_TEXT = "cannot register shared memory region 'r' with key '{0}' as the key contains the reserved prefix '" + RESERVED + "'"


@pytest.mark.parametrize(
    "key, kind, text",
    [
        ("", InvalidArgument, "cannot register shared memory region 'r' - invalid shm key ''"),
        ("/", InvalidArgument, "cannot register shared memory region 'r' - invalid shm key '/'"),
        ("///", InvalidArgument, "cannot register shared memory region 'r' - invalid shm key '///'"),
        (RESERVED, InvalidArgument, RESERVED_TEXT),
        ("/" + RESERVED + "5", InvalidArgument, RESERVED_TEXT),
        ("///" + RESERVED + "5", InvalidArgument, RESERVED_TEXT),
        ("/no_such_key", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/..", InternalError, "Unable to open shared memory region: '{0}'"),
        (".", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/../shm/{file}", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/./{file}", InternalError, "Unable to open shared memory region: '{0}'"),
        ("{file}/", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/../../etc/passwd", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/" + "x" * 300, InternalError, "Unable to open shared memory region: '{0}'"),
        ("/{file}\0", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/\udcff\ud800", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/{link}", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/{pipe}", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/{directory}", InternalError, "Unable to open shared memory region: '{0}'"),
        ("/{directory}/file", InternalError, "Unable to open shared memory region: '{0}'"),
    ],
)
def test_a_key_that_is_not_that_of_a_shared_memory_object(registry: Registry, file: ClientFile, key: str, kind: type, text: str) -> None:
    name = file.key[1:]
    os.symlink(file.path, file.path + "-link")
    os.mkfifo(file.path + "-pipe")
    os.mkdir(file.path + "-directory")
    Path(file.path + "-directory/file").write_bytes(bytes(SIZE))
    try:
        key = key.format(file=name, link=name + "-link", pipe=name + "-pipe", directory=name + "-directory")
        error = refusal(lambda: registry.register_system("r", key, 0, 1))
    finally:
        os.unlink(file.path + "-link")
        os.unlink(file.path + "-pipe")
        os.unlink(file.path + "-directory/file")
        os.rmdir(file.path + "-directory")
    assert type(error) is kind and str(error) == text.format(key)
    assert registry.system_status() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_file_of_somebody_else(registry: Registry, file: ClientFile) -> None:
    os.chmod(file.path, 0o400)
    assert str(refusal(lambda: registry.register_system("r", file.key, 0, 1))) == f"Unable to open shared memory region: '{file.key}'"


@pytest.mark.parametrize(
    "offset, size", [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (SIZE + 1, 1), (MOST, MOST), (0, MOST), (MOST, 1), (0, 0), (-1, 1), (0, -1)]
)
def test_a_window_that_is_not_within_the_object(registry: Registry, file: ClientFile, offset: int, size: int) -> None:
    error = refusal(lambda: registry.register_system("r", file.key, offset, size))
    assert type(error) is InvalidArgument and str(error) == "failed to register shared memory region 'r': invalid args"
    assert registry.system_status() == []


def test_a_name_is_taken_once_and_a_key_as_often_as_one_likes(registry: Registry, file: ClientFile) -> None:
    for name in ("a", "b", "c"):
        registry.register_system(name, file.key, 0, SIZE)
        error = refusal(lambda name=name: registry.register_system(name, file.key, 0, 1))  # type: ignore[misc]
        assert type(error) is AlreadyExists and str(error) == f"shared memory region '{name}' already in manager"
        assert str(refusal(lambda name=name: registry.register_cuda(name, bytes(64), 0, 1))) == str(error)  # type: ignore[misc]
    registry.unregister_system("b")
    assert registry.names() == ["a", "c"]
    registry.register_system("b", file.key, 8, 8)
    assert registry.names() == ["a", "c", "b"]


def test_a_region_whose_name_is_gone_stays(registry: Registry, file: ClientFile) -> None:
    registry.register_system("r", file.key, 0, SIZE)
    file.unlink()
    use = registry.use([RegionSlice("r", 0, 8)], [])
    assert use.reads[0][0].fd >= 0 and os.fstat(use.reads[0][0].fd).st_size == SIZE
    use.release()


# ---- listing and unregistering ----


def test_what_is_not_there(registry: Registry, file: ClientFile) -> None:
    registry.unregister_system("nope")
    registry.unregister_cuda("nope")
    registry.unregister_system()
    registry.unregister_cuda()
    assert (registry.system_status(), registry.cuda_status()) == ([], [])
    error = refusal(lambda: registry.system_status("nope"))
    assert type(error) is NotFound and str(error) == "Unable to find system shared memory region: 'nope'"
    error = refusal(lambda: registry.cuda_status("nope"))
    assert type(error) is NotFound and str(error) == "Unable to find cuda shared memory region: 'nope'"
    registry.register_system("r", file.key, 0, SIZE)
    error = refusal(lambda: registry.cuda_status("r"))
    assert type(error) is NotFound
    assert str(error) == "The region named 'r' is registered as system shared memory, not CUDA shared memory"


def test_all_at_once(registry: Registry, file: ClientFile) -> None:
    for name in ("a", "b", "c"):
        registry.register_system(name, file.key, 0, SIZE)
    registry.unregister_cuda()
    assert registry.names() == ["a", "b", "c"]
    registry.unregister_system()
    assert registry.names() == [] and registry.forgotten == [1, 2, 3]


@pytest.mark.parametrize("handle", [b"", bytes(CUDA_HANDLE_BYTES - 1), bytes(CUDA_HANDLE_BYTES + 1)])
def test_a_cuda_handle_that_is_none(registry: Registry, handle: bytes) -> None:
    error = refusal(lambda: registry.register_cuda("r", handle, 0, 1))
    assert type(error) is InvalidArgument and str(error) == "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"


SAYS = "import sys; assert len(sys.stdin.readline().split()) == 3; print({!r})"


@pytest.mark.parametrize(
    "said, text",
    [
        ("no driver there is no CUDA driver", "failed to register CUDA shared memory region: 'r', GPUs not supported"),
        ("CudaError: cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE (1)", "failed to register shared memory region: invalid args"),
        ("", "failed to register shared memory region: invalid args"),
    ],
)
def test_cuda_memory_that_a_look_does_not_find(registry: Registry, monkeypatch: pytest.MonkeyPatch, said: str, text: str) -> None:
    monkeypatch.setattr(client_regions, "CHECK", (sys.executable, "-c", SAYS.format(said)))
    error = refusal(lambda: registry.register_cuda("r", bytes(CUDA_HANDLE_BYTES), 0, 1))
    assert type(error) is InvalidArgument and str(error) == text
    assert registry.cuda_status() == []


def test_nothing_of_cuda_memory(registry: Registry) -> None:
    assert str(refusal(lambda: registry.register_cuda("r", bytes(CUDA_HANDLE_BYTES), 0, 0))) == (
        "failed to register shared memory region: invalid args"
    )


def test_cuda_memory_is_registered_beside_that_of_the_system(registry: Registry, file: ClientFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_regions, "CHECK", (sys.executable, "-c", SAYS.format("ok " + "ab" * 16)))
    registry.register_system("host", file.key, 0, SIZE)
    registry.register_cuda("gpu", bytes(CUDA_HANDLE_BYTES), 1, 4096)
    row = {"name": "gpu", "device_id": 1, "byte_size": 4096}
    assert registry.cuda_status() == registry.cuda_status("gpu") == [row]
    assert registry.names() == ["host"]
    error = refusal(lambda: registry.system_status("gpu"))
    assert type(error) is NotFound
    assert str(error) == "The region named 'gpu' is registered as CUDA shared memory, not system shared memory"
    assert type(refusal(lambda: registry.register_cuda("host", bytes(CUDA_HANDLE_BYTES), 1, 1))) is AlreadyExists
    assert type(refusal(lambda: registry.register_system("gpu", file.key, 0, SIZE))) is AlreadyExists
    registry.unregister_system()
    registry.unregister_system("gpu")
    assert registry.cuda_status() == [row], "of another kind"
    use = registry.use([RegionSlice("gpu", 4095, 1)], [])
    registry.unregister_cuda()
    assert registry.cuda_status() == [row], "in use"
    use.release()
    assert registry.cuda_status() == []


class SlowRegistry(Registry):
    """Registering takes until ``go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.began = 0
        self.done = 0

    def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        self.began += 1
        assert self.began == self.done + 1, "one at a time"
        assert self.go.wait(30)
        self.done += 1


def test_registrations_that_wait_leave_the_threads_to_others() -> None:
    async def register() -> int:
        registry = SlowRegistry()
        waiting = [asyncio.ensure_future(registry.register_cuda_in_turn(f"r{number}", b"", 0, 1)) for number in range(100)]
        await asyncio.sleep(0)  # they have all begun, and are more than there are threads
        try:
            await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, lambda: None), 10)
        finally:
            registry.go.set()
        await asyncio.gather(*waiting)
        return registry.done

    assert asyncio.run(register()) == 100


def test_a_server_that_does_not_allow_it(file: ClientFile) -> None:
    registry = Registry(allowed=False)
    attempts: List[Callable[[], None]] = [
        lambda: registry.register_system("r", file.key, 0, 1),
        lambda: registry.register_system("r", "/", 0, 1),
        lambda: registry.register_cuda("r", bytes(64), 0, 1),
        registry.unregister_system,
        lambda: registry.unregister_system("r"),
        registry.unregister_cuda,
    ]
    for attempt in attempts:
        error = refusal(attempt)
        assert type(error) is Unsupported
        assert str(error) == "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    assert (registry.system_status(), registry.cuda_status()) == ([], [])
    assert str(refusal(lambda: registry.use([RegionSlice("r", 0, 1)], []))) == "Unable to find shared memory region: 'r'"


# ---- in use ----


@pytest.mark.parametrize(
    "offset, nbytes, text",
    [
        (100, 1, "Invalid offset for shared memory region: 'r'"),
        (101, 0, "Invalid offset for shared memory region: 'r'"),
        (MOST, MOST, "Invalid offset for shared memory region: 'r'"),
        (-1, 1, "Invalid offset for shared memory region: 'r'"),
        (
            1,
            MOST,
            f"Integer overflow detected: byte_size ({MOST}) + offset (1) exceeds maximum value (18446744073709551615) for region 'r'",
        ),
        (0, MOST, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, 101, "Invalid offset + byte size for shared memory region: 'r'"),
        (99, 2, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, -1, "Invalid offset + byte size for shared memory region: 'r'"),
    ],
)
def test_a_tensor_that_is_not_within_its_region(registry: Registry, file: ClientFile, offset: int, nbytes: int, text: str) -> None:
    registry.register_system("r", file.key, 50, 100)
    registry.register_system("fine", file.key, 0, 100)
    wrong, fine = RegionSlice("r", offset, nbytes), RegionSlice("fine", 0, 1)
    for attempt in (
        lambda: registry.check(wrong),
        lambda: registry.use([fine, wrong], []),
        lambda: registry.use([fine], [(0, fine), (1, wrong)]),
    ):
        error = refusal(attempt)
        assert error.code is ErrorCode.INVALID_ARG and str(error) == text
    registry.unregister_system()
    assert registry.names() == [], "what was found before the error is not held"


@given(size=st.integers(1, 300), offset=st.integers(-10, 400), nbytes=st.integers(-10, 400))
def test_what_is_accepted_lies_within(size: int, offset: int, nbytes: int) -> None:
    region = ClientRegion(1, "r", size)
    try:
        region.check(offset, nbytes)
    except InvalidArgument:
        assert offset < 0 or nbytes < 0 or offset >= size or offset + nbytes > size
    else:
        assert 0 <= offset <= offset + nbytes <= size


def test_a_region_that_is_in_use_goes_with_the_last_request(registry: Registry, file: ClientFile) -> None:
    for name in ("mine", "yours", "idle"):
        registry.register_system(name, file.key, 0, SIZE)
    mine, yours = RegionSlice("mine", 0, 8), RegionSlice("yours", 8, 8)
    first = registry.use([mine, mine, yours], [(3, mine)])
    second = registry.use([], [(0, mine)])
    assert first.message() == ([(1, 0, 8), (1, 0, 8), (2, 8, 8)], [(3, 1, 0, 8)])
    registry.unregister_system()
    assert registry.names() == ["mine", "yours"] and registry.forgotten == [3]
    assert type(refusal(lambda: registry.register_system("mine", file.key, 0, SIZE))) is AlreadyExists
    first.release()
    first.release()
    assert registry.names() == ["mine"] and registry.forgotten == [3, 2]
    second.release()
    assert registry.names() == [] and registry.forgotten == [3, 2, 1]


def test_a_region_that_nobody_gave_up_stays_when_its_requests_end(registry: Registry, file: ClientFile) -> None:
    registry.register_system("r", file.key, 0, SIZE)
    registry.use([RegionSlice("r", 0, 8)], []).release()
    assert registry.names() == ["r"] and not registry.forgotten


def test_a_name_that_is_registered_again_is_another_region(registry: Registry, file: ClientFile) -> None:
    ids = []
    for _ in range(2):
        registry.register_system("r", file.key, 0, SIZE)
        use = registry.use([RegionSlice("r", 0, 8)], [])
        ids.append(use.reads[0][0].id)
        use.release()
        registry.unregister_system("r")
    assert ids == [1, 2] == registry.forgotten


def test_the_end_of_the_server(file: ClientFile) -> None:
    registry = Registry()
    registry.register_system("r", file.key, 0, SIZE)
    use = registry.use([RegionSlice("r", 0, 8)], [])
    registry.unregister_system("r")
    registry.close()
    use.release()
    assert registry.names() == []
