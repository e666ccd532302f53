"""The driver layer on a GPU: two processes, one memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
from stublet.shm.cuda import check

pytestmark = pytest.mark.gpu

HEAD = """
import ctypes, subprocess, sys
from stublet.shm.cuda.driver import CudaError, load

cuda = load()
uuid = cuda.uuid(0)

def write(pointer, data):
    stream = cuda.create_stream()
    source = ctypes.create_string_buffer(data, len(data))
    cuda.copy_from_host(pointer, ctypes.addressof(source), len(data), stream)
    cuda.finish(stream)
    cuda.destroy_stream(stream)

def read(pointer, nbytes):
    stream = cuda.create_stream()
    target = ctypes.create_string_buffer(nbytes)
    cuda.copy_to_host(ctypes.addressof(target), pointer, nbytes, stream)
    cuda.finish(stream)
    cuda.destroy_stream(stream)
    return target.raw

def fails(function, *arguments):
    try:
        function(*arguments)
    except CudaError as error:
        return error.name
    return "nothing"
"""

IMPORTER = """
base = cuda.open(bytes.fromhex(sys.stdin.readline()))
print(read(base, 5).decode(), flush=True)
sys.stdin.readline()
print(read(base, 5).decode(), flush=True)
cuda.close(base)
print("closed", flush=True)
"""


EXPORTER = """
base = cuda.allocate(2 << 20)
write(base, b"hello")
print(cuda.export(base).hex(), flush=True)
sys.stdin.readline()
"""


def started(code: str) -> subprocess.Popen[str]:
    """A program that has the device's context."""
    body = "\n".join("    " + line for line in code.strip().splitlines())
    command = [sys.executable, "-c", f"{HEAD}\nwith cuda.on(0):\n{body}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(code: str) -> str:
    """What it says."""
    with started(code) as process:
        output, complaints = process.communicate(timeout=120)
        assert not process.returncode, complaints
        return output


def test_the_device_and_its_memory() -> None:
    code = """
assert cuda.version() >= 11000 and cuda.count() >= 1 and len(uuid) == 16 and any(uuid) and cuda.capability(0) >= (6, 0)
free, total = cuda.memory()
assert 0 < free <= total
base = cuda.allocate(4 << 20)
assert cuda.extent(base + 5) == (base, 4 << 20)
write(base, b"hello")
assert read(base, 5) == b"hello"
cuda.free(base)
print("done")"""
    assert run(code) == "done\n"


def test_copies_are_ordered_by_their_stream_and_its_event() -> None:
    code = """
a, b = cuda.allocate(64 << 20), cuda.allocate(64 << 20)
write(a, b"x" * (1 << 20))
stream, event = cuda.create_stream(), cuda.create_event()
for _ in range(20):
    cuda.copy(b, a, 64 << 20, stream)
cuda.record(event, stream)
cuda.wait_for(event)
assert read(b, 4) == b"xxxx"
cuda.destroy_event(event); cuda.destroy_stream(stream)
print("done")"""
    assert run(code) == "done\n"


def test_the_errors_are_those_that_are_expected() -> None:
    code = """
print(fails(cuda.allocate, 1 << 50))
base = cuda.allocate(2 << 20)
print(fails(cuda.open, cuda.export(base)))"""
    assert run(code).split() == ["CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_INVALID_CONTEXT"]


def test_another_process_sees_the_memory_also_after_the_death_of_its_exporter() -> None:
    with started(EXPORTER) as exporter, started(IMPORTER) as reader:
        assert exporter.stdout is not None and reader.stdin is not None and reader.stdout is not None
        reader.stdin.write(exporter.stdout.readline())
        reader.stdin.flush()
        assert reader.stdout.readline() == "hello\n"
        exporter.kill()
        exporter.wait()
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "hello\n", "the mapping stays"
        assert reader.stdout.readline() == "closed\n"


def test_the_check_says_ok_and_what_is_wrong() -> None:
    code = f"""
base = cuda.allocate(2 << 20)
write(base, b"p" * 512)
for pattern in (b"p" * 512, b"q" * 512):
    line = " ".join(part.hex() for part in (uuid, cuda.export(base), pattern)) + "\\n"
    print(subprocess.run([sys.executable, {check.__file__!r}], input=line, capture_output=True, text=True).stdout, end="")
line = " ".join(part.hex() for part in (uuid, bytes(64), b"p" * 512)) + "\\n"
print(subprocess.run([sys.executable, {check.__file__!r}], input=line, capture_output=True, text=True).stdout, end="")"""
    ok, other, garbage = run(code).splitlines()
    assert (ok, other) == ("ok", "another process sees other bytes there") and garbage.startswith("CudaError: cuIpcOpenMemHandle_v2")
