"""No memory, no room in /dev/shm, no descriptors: it is told what, where, and what to do; the rest goes on, and all of it when there is room."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Tuple

import pytest
from http_wire import Answer, Wire, infer, request, tensor
from model_repository import ECHO, write_model
from server_process import ServerProcess, descendants, serving, until

from .conftest import Serve

MEBI = 1 << 20
BYTES_CONFIG = 'input { name: "INPUT0" data_type: TYPE_UINT8 dims: [-1] }\noutput { name: "OUTPUT0" data_type: TYPE_UINT8 dims: [-1] }\n'
COPIES = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Its outputs are copies: they take room of the stub's own.'''

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy().copy())]) for r in requests]
"""
WITHOUT_MEMFD = Path(__file__).parent.parent / "without_memfd.py"


def ask(wire: Wire, nbytes: int, model: str = "echo") -> Answer:
    """Every byte is looked at, there and back."""
    data = bytes([nbytes % 251]) * nbytes
    answer = wire.ask(infer(model, {"inputs": [tensor("INPUT0", "UINT8", [nbytes], binary_data_size=nbytes)], "outputs": BINARY}, data))
    assert answer.status != 200 or answer.binary == data
    return answer


BINARY = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]


@pytest.fixture(autouse=True)
def models(repository: Path) -> None:
    """``echo`` answers with its input, ``copies`` with a copy of it."""
    write_model(repository, "echo", ECHO, BYTES_CONFIG)
    write_model(repository, "copies", COPIES, BYTES_CONFIG)


@contextmanager
def limit(pid: int, which: int, value: int) -> Iterator[None]:
    """Lowers a limit of a process."""
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, which, before)


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


# ---- /dev/shm ----


def with_small_shm(mebibytes: int, *more: str) -> Tuple[str, ...]:
    """A command that becomes another one, for which /dev/shm has that size."""
    mount = f'mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm && exec "$@"'
    for namespaces in ("-m", "-Urm"):
        prefix = ("unshare", namespaces, "sh", "-c", mount, "sh")
        try:
            if subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode == 0:
                return (*prefix, *more)
        except OSError:
            break
    pytest.skip("no mount namespace can be made here")


@pytest.mark.parametrize("mebibytes", [1, 64])
def test_the_size_of_dev_shm_does_not_matter(tmp_path: Path, repository: Path, mebibytes: int) -> None:
    with serving(tmp_path, repository, prefix=with_small_shm(mebibytes)) as server, server.wire() as wire:
        for size in (10, 100 * MEBI, 1000):
            assert ask(wire, size).status == 200
            assert ask(wire, size, "copies").status == 200


def test_without_memfd_a_small_dev_shm_is_a_limit(tmp_path: Path, repository: Path) -> None:
    """And what has been in it makes room for what comes."""
    prefix = with_small_shm(64, sys.executable, str(WITHOUT_MEMFD))
    with serving(tmp_path, repository, "--shm-idle-secs", "0.05", tracebacks=True, prefix=prefix) as server:
        with server.wire() as wire:
            assert ask(wire, 20 * MEBI, "copies").status == 200
            answer = ask(wire, 100 * MEBI)
            assert answer.status == 503
            assert "find no room: " in answer.error and "/dev/shm is full: enlarge it (docker run --shm-size=1g)" in answer.error
        with server.wire() as wire:
            for size in (30, 40, 20):
                until(lambda size=size: ask(wire, size * MEBI).status == 200, 10, "room for it")  # type: ignore[misc]
            answer = ask(wire, 33 * MEBI, "copies")
            assert (answer.status, "/dev/shm is full" in answer.error) == (500, True), answer
            until(lambda: ask(wire, 10 * MEBI, "copies").status == 200, 10, "room for it")


def test_without_memfd_and_with_a_tiny_dev_shm_it_is_told_why_nothing_loads(tmp_path: Path, repository: Path) -> None:
    server = ServerProcess(tmp_path, repository, prefix=with_small_shm(1, sys.executable, str(WITHOUT_MEMFD)))
    try:
        server.assert_ended(1)
        assert "Unable to initialize shared memory: " in server.log and "/dev/shm is full: enlarge it" in server.log
    finally:
        server.cleanup()


# ---- memory ----


def test_a_server_without_memory_refuses_and_goes_on(serve: Serve) -> None:
    server = serve()
    with server.wire() as wire:
        assert ask(wire, 10).status == 200
        with limit(server.pid, resource.RLIMIT_AS, address_space(server.pid) + 16 * MEBI):
            answer = ask(wire, 100 * MEBI)
            assert answer.status == 503
            assert answer.error.startswith("the inputs of a request to model 'echo' find no room: ")
            assert answer.error.endswith("bytes of shared memory cannot be mapped: Cannot allocate memory")
    with server.wire() as wire:
        assert ask(wire, 1000).status == 200
        assert ask(wire, 100 * MEBI).status == 200


@pytest.mark.parametrize("model", ["echo", "copies"])
def test_a_stub_without_memory_loses_the_request_and_goes_on(serve: Serve, model: str) -> None:
    server = serve()
    pid = server.stubs()[f"{model}_0_0"]
    with server.wire() as wire:
        assert ask(wire, 10, model).status == 200
        for size in (100 * MEBI, 200 * MEBI):
            with limit(pid, resource.RLIMIT_AS, address_space(pid) + 8 * MEBI):
                answer = ask(wire, size, model)
                assert answer.status == 503
                assert answer.error.endswith("bytes of shared memory cannot be mapped: Cannot allocate memory")
            assert ask(wire, size, model).status == 200, "it is the same segment"
        with limit(pid, resource.RLIMIT_AS, address_space(pid) + 8 * MEBI):
            assert ask(wire, 1000, model).status == 200, "a small one needs nothing new"
    assert server.stubs()[f"{model}_0_0"] == pid


def test_outputs_for_which_a_stub_has_no_memory(serve: Serve) -> None:
    server = serve("--shm-idle-secs", "3600")
    pid = server.stubs()["copies_0_0"]
    with server.wire() as wire:
        assert ask(wire, 10 * MEBI, "copies").status == 200
        with limit(pid, resource.RLIMIT_AS, address_space(pid) + 56 * MEBI):
            answer = ask(wire, 50 * MEBI, "copies")
            assert answer.status in (500, 503) and ("memory" in answer.error or "allocate" in answer.error), answer
        assert ask(wire, 50 * MEBI, "copies").status == 200
    assert server.stubs()["copies_0_0"] == pid


# ---- descriptors ----


def with_free(pid: int, count: int = 1) -> int:
    """The limit with which a process can have so many descriptors more."""
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = (number for number in range(1 << 20) if number not in used)
    return next(islice(free, count, None))


def test_a_server_of_64_descriptors(tmp_path: Path, repository: Path) -> None:
    """Memory that is in no use makes room; one connection too many waits, or is refused; afterwards everything goes on."""
    prefix = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    with serving(tmp_path, repository, prefix=prefix) as server:
        with server.wire() as wire:
            assert ask(wire, 10).status == 200
            with limit(server.pid, resource.RLIMIT_NOFILE, with_free(server.pid)):
                assert ask(wire, 20).status == 200
                assert ask(wire, 3 * MEBI).status == 200, "segments in no use make room"
                assert ask(wire, 3 * MEBI, "copies").status == 200
        with ExitStack() as many:
            wires = [many.enter_context(server.wire()) for _ in range(100)]
            answered = [answer for answer in map(attempt, wires[:8]) if answer]
            assert answered, "the first ones are served"
        # The server may not have seen yet that those connections are closed.
        until(lambda: goes_on(server), 10, "that it goes on")
        with server.wire() as wire:
            assert [ask(wire, size).status for size in (10, 3 * MEBI, 10)] == [200] * 3
            assert ask(wire, 3 * MEBI, "copies").status == 200


def goes_on(server: ServerProcess) -> bool:
    with suppress(ConnectionError), server.wire() as wire:
        return attempt(wire)
    return False


def test_a_load_that_runs_out_of_descriptors_leaves_nothing(repository: Path, serve: Serve) -> None:
    """Wherever that is: before the first instance is there, or when others are being started."""
    groups = "instance_group { count: 3 kind: KIND_CPU }\n"
    write_model(repository, "three", ECHO, BYTES_CONFIG + groups)
    server = serve("--model-control-mode=explicit")

    def descriptors() -> int:
        """Without those of mappings, which go with the next collection of garbage."""
        files = [str(entry.readlink()) for entry in Path(f"/proc/{server.pid}/fd").iterdir()]
        return sum("memfd" not in file for file in files)

    with server.wire() as wire:

        def do(what: str) -> int:
            return wire.ask(request("POST", f"/v2/repository/models/three/{what}")).status

        assert do("load") == do("unload") == 200
        until(lambda: len(descendants(server.pid)) == 1, what="the end of the instances")
        before = descriptors()
        statuses = []
        for count in range(60):
            with limit(server.pid, resource.RLIMIT_NOFILE, with_free(server.pid, count)):
                statuses.append(do("load"))
            if statuses[-1] == 200:
                break
            until(lambda: len(descendants(server.pid)) == 1, 3, f"the end of what was started with {count} descriptors")
            until(lambda: descriptors() <= before, 3, f"the end of {count} descriptors")
        assert len(statuses) > 10 and statuses[-1] == 200
    server.stop(tracebacks=True)


def attempt(wire: Any) -> bool:
    return bool(ask(wire, 10).status == 200)
