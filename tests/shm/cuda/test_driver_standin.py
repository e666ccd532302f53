"""The driver layer over a stand-in for the library: what is called, with what, and what fails how."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from standin_cuda import StandinCuda
from stublet.shm.cuda import driver as driver_module
from stublet.shm.cuda.driver import SIGNATURES, CudaError, Driver, IpcHandle, NoDriver

# The prototypes of cuda.h, with the types of this file: CUdeviceptr is unsigned long long, the handles of contexts, streams and events
# are pointers, CUdevice is int.
PROTOTYPES = """
typedef int CUresult; typedef int CUdevice; typedef unsigned long long CUdeviceptr; typedef void *CUcontext, *CUstream, *CUevent;
typedef struct { unsigned char bytes[16]; } CUuuid; typedef struct { char reserved[64]; } CUipcMemHandle; typedef __SIZE_TYPE__ size_t;
CUresult cuInit(unsigned int flags) { return flags == 0 ? 0 : 1; }
CUresult cuDriverGetVersion(int *version) { *version = 12040; return 0; }
CUresult cuGetErrorName(CUresult error, const char **name) { *name = "CUDA_ERROR_X"; return error == 999; }
CUresult cuDeviceGetCount(int *count) { *count = 3; return 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal + 7; return ordinal < 3 ? 0 : 101; }
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) { for (int i = 0; i < 16; i++) uuid->bytes[i] = device * i; return 0; }
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) { *value = attribute - 68 + device; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (void *)(0x7f0000000000 + device); return 0; }
CUresult cuCtxPushCurrent_v2(CUcontext context) { return context == (void *)0x7f0000000007 ? 0 : 201; }
CUresult cuCtxPopCurrent_v2(CUcontext *context) { *context = 0; return 0; }
CUresult cuCtxSynchronize(void) { return 0; }
CUresult cuThreadExchangeStreamCaptureMode(int *mode) { static int now; int before = now; now = *mode; *mode = before; return 0; }
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 1ul << 35; *total = 1ul << 36; return 0; }
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t nbytes) { *pointer = 0x7f1234567000 + nbytes; return 0; }
CUresult cuMemFree_v2(CUdeviceptr pointer) { return pointer >> 32 == 0x7f12 ? 0 : 1; }
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr p) { *base = p - 1; *size = 1ul << 40; return 0; }
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr p) { for (int i = 0; i < 64; i++) handle->reserved[i] = i; return 0; }
CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags) {
    for (int i = 0; i < 64; i++) if (handle.reserved[i] != i) return 1;
    *pointer = 0x7f5555555000; return flags == 1 ? 0 : 2; }
CUresult cuIpcCloseMemHandle(CUdeviceptr pointer) { return pointer == 0x7f5555555000 ? 0 : 1; }
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) { *stream = (void *)0x7f6666666000; return flags == 1 ? 0 : 1; }
CUresult cuStreamDestroy_v2(CUstream stream) { return stream == (void *)0x7f6666666000 ? 0 : 1; }
CUresult cuStreamSynchronize(CUstream stream) { return stream == (void *)0x7f6666666000 ? 0 : 1; }
CUresult cuEventCreate(CUevent *event, unsigned int flags) { *event = (void *)0x7f7777777000; return flags == 2 ? 0 : 1; }
CUresult cuEventDestroy_v2(CUevent event) { return event == (void *)0x7f7777777000 ? 0 : 1; }
CUresult cuEventRecord(CUevent event, CUstream stream) { return event == (void *)0x7f7777777000 && stream == (void *)0x7f6666666000 ? 0 : 1; }
CUresult cuEventSynchronize(CUevent event) { return event == (void *)0x7f7777777000 ? 0 : 1; }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
    return to == 0x7f0000000001 && from == 0x7f0000000002 && n == 1ul << 33 && s == (void *)0x7f6666666000 ? 0 : 1; }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) { return cuMemcpyDtoDAsync_v2((CUdeviceptr)to, from, n, s); }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream s) {
    return cuMemcpyDtoDAsync_v2(to, (CUdeviceptr)from, n, s); }
"""


@pytest.fixture
def library() -> Iterator[StandinCuda]:
    found = StandinCuda()
    yield found
    found.close()


@pytest.fixture
def cuda(library: StandinCuda) -> Driver:
    return Driver(library)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    directory = tmp_path_factory.mktemp("library")
    (directory / "cuda.c").write_text(PROTOTYPES)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", directory / "libcuda.so.1", directory / "cuda.c"], check=True)
    return ctypes.CDLL(str(directory / "libcuda.so.1"))


def test_every_function_passes_its_arguments_as_c_has_them_standin(compiled: Any) -> None:
    cuda = Driver(compiled)
    assert cuda.version() == 12040 and cuda.count() == 3
    assert cuda.uuid(0) == bytes(7 * i for i in range(16)), "not cut off at the first zero"
    assert cuda.capability(1) == (15, 16)
    with cuda.on(0):
        assert cuda.memory() == (1 << 35, 1 << 36)
        assert cuda.allocate(8) == 0x7F1234567008 and cuda.extent(0x7F1234567008) == (0x7F1234567007, 1 << 40)
        cuda.free(0x7F1234567008)
        handle = cuda.export(0x7F1234567008)
        assert handle == bytes(range(64))
        base = cuda.open(handle)
        assert base == 0x7F5555555000
        cuda.close(base)
        stream, event = cuda.create_stream(), cuda.create_event()
        cuda.record(event, stream)
        cuda.wait_for(event)
        for copy in (cuda.copy, cuda.copy_to_host, cuda.copy_from_host):
            copy(0x7F0000000001, 0x7F0000000002, 1 << 33, stream)
        cuda.finish(stream)
        cuda.finish_all()
        cuda.destroy_event(event)
        cuda.destroy_stream(stream)
    with pytest.raises(CudaError, match=r"cuDeviceGet: CUDA_ERROR_X \(101\)"):
        cuda.uuid(3)


def test_the_prototypes_are_those_of_every_function_used() -> None:
    named = {line.split("(")[0].split()[-1] for line in PROTOTYPES.splitlines() if line.startswith("CUresult cu")}
    assert named == set(SIGNATURES) and ctypes.sizeof(IpcHandle) == 64


def test_without_a_driver_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "LIBRARY", "libcuda-of-nowhere.so.1")
    with pytest.raises(NoDriver, match="there is no CUDA driver: libcuda-of-nowhere"):
        driver_module.load()


def test_a_driver_that_lacks_a_function_standin(library: StandinCuda) -> None:
    del library.cuIpcOpenMemHandle_v2  # type: ignore[attr-defined]
    with pytest.raises(NoDriver, match="too old: it has no cuIpcOpenMemHandle_v2"):
        Driver(library)


def test_a_driver_without_a_device_standin() -> None:
    with pytest.raises(NoDriver, match="cuInit: CUDA_ERROR_NO_DEVICE"):
        Driver(StandinCuda(devices=0))


def test_an_error_has_its_name_and_number_standin(cuda: Driver, library: StandinCuda) -> None:
    with cuda.on(0):
        with pytest.raises(CudaError, match=r"^cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY \(2\)$") as caught:
            cuda.allocate(library.limit + 1)
        assert (caught.value.code, caught.value.context_is_lost) == (2, False)
        for code, text, lost in [
            (214, "an unknown error", True),  # of memory
            (226, "an unknown error", True),  # contained by the GPU
            (700, "CUDA_ERROR_ILLEGAL_ADDRESS", True),
            (721, "an unknown error", True),  # of tensor memory
            (810, "an unknown error", True),  # by MPS
            (12345, "an unknown error", False),
        ]:
            library.fails["cuMemFree_v2"] = code
            with pytest.raises(CudaError, match=text) as caught:
                cuda.free(1)
            assert caught.value.context_is_lost is lost


def test_the_context_is_current_within_and_what_was_before_it_afterwards_standin(cuda: Driver) -> None:
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_CONTEXT"):
        cuda.allocate(8)
    with cuda.on(0):
        with cuda.on(0):
            cuda.free(cuda.allocate(8))
        cuda.free(cuda.allocate(8))
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_CONTEXT"):
        cuda.allocate(8)


def test_a_graph_that_another_thread_captures_is_not_spoilt_standin(cuda: Driver, library: StandinCuda) -> None:
    library.captures = True
    with cuda.on(0):
        with cuda.on(0):
            cuda.free(cuda.allocate(8))
        cuda.free(cuda.allocate(8))
    assert library.capture_mode == 0, "a graph of this thread's own is captured as before"


def test_the_context_of_a_device_is_made_once_standin(cuda: Driver, library: StandinCuda) -> None:
    for _ in range(3):
        with cuda.on(0):
            continue
    assert library.calls.count("cuDevicePrimaryCtxRetain") == 1
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_DEVICE"), cuda.on(1):
        raise AssertionError


IMPORTER = """
import sys
sys.path.insert(0, {tests!r})
from standin_cuda import StandinCuda
library = StandinCuda()
cuda = library.driver()
with cuda.on(0):
    base = cuda.open(bytes.fromhex(sys.stdin.readline()))
    assert library.read(base, 5) == b"hello", library.read(base, 5)
    assert cuda.extent(base + 3) == (base, 2 << 20)
    library.write(base, b"world")
    cuda.close(base)
print("done")
"""


def test_what_one_process_exports_another_opens_standin(cuda: Driver, library: StandinCuda) -> None:
    with cuda.on(0):
        base = cuda.allocate(2 << 20)
        library.write(base, b"hello")
        handle = cuda.export(base)
        with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_CONTEXT"):
            cuda.open(handle)
        code = IMPORTER.format(tests=os.fspath(Path(__file__).parents[2]))
        done = subprocess.run([sys.executable, "-c", code], input=handle.hex(), capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("done\n", "")
        assert library.read(base, 5) == b"world"
        cuda.free(base)


def test_work_is_done_when_it_is_waited_for_standin(cuda: Driver, library: StandinCuda) -> None:
    with cuda.on(0):
        source, target = cuda.allocate(8), cuda.allocate(8)
        stream, event = cuda.create_stream(), cuda.create_event()
        library.write(source, b"abcdefgh")
        cuda.copy(target, source, 8, stream)
        cuda.record(event, stream)
        assert library.read(target, 8) == bytes(8)
        cuda.wait_for(event)
        assert library.read(target, 8) == b"abcdefgh"
