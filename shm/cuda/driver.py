"""The CUDA driver, through ctypes: the few functions that move tensors between processes.

The driver and not the runtime, and no array library: an environment may have torch, JAX, CuPy or none of them, and all of them use the
driver's primary context, which is the one used here. ctypes lets other threads run during every call. Source: cuda.h of CUDA 12 and 13,
https://docs.nvidia.com/cuda/cuda-driver-api/; the names with ``_v2`` are what the library exports and cuda.h renames.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any, Dict, Iterator, Mapping, Sequence, Tuple, Type

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64
UUID_BYTES = 16

LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
ANY_STREAM = -1
"""To the consumer of a tensor: it synchronizes itself, with whatever stream it uses."""

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy stream
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING; without CU_EVENT_BLOCKING_SYNC, because what is waited for takes microseconds
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS

OUT_OF_MEMORY = 2

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR

_CONTEXT_IS_LOST = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810})
"""From CUDA_ERROR_ECC_UNCORRECTABLE to CUDA_ERROR_MPS_CLIENT_TERMINATED: the process has to end to use the GPU again."""

Pointer = c_uint64
"""CUdeviceptr."""


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which travels by value. Of unsigned bytes: an array of c_char ends at the first zero."""

    _fields_ = [("bytes", c_ubyte * HANDLE_BYTES)]


SIGNATURES: Mapping[str, Sequence[Any]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetUuid_v2": (c_char_p, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuCtxSynchronize": (),
    "cuThreadExchangeStreamCaptureMode": (POINTER(c_int),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(Pointer), c_size_t),
    "cuMemFree_v2": (Pointer,),
    "cuMemGetAddressRange_v2": (POINTER(Pointer), POINTER(c_size_t), Pointer),
    "cuIpcGetMemHandle": (POINTER(IpcHandle), Pointer),
    "cuIpcOpenMemHandle_v2": (POINTER(Pointer), IpcHandle, c_uint),
    "cuIpcCloseMemHandle": (Pointer,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuMemcpyDtoDAsync_v2": (Pointer, Pointer, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, Pointer, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (Pointer, c_void_p, c_size_t, c_void_p),
}
"""Every function that is used, with the types of its arguments. All return a CUresult."""


class CudaError(Exception):
    """A function of the driver failed. ``function``, ``code`` (CUresult) and ``name``, such as CUDA_ERROR_OUT_OF_MEMORY."""

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function}: {name} ({code})")
        self.function = function
        self.code = code
        self.name = name

    @property
    def context_is_lost(self) -> bool:
        """Whether nothing on the GPU works any more in this process."""
        return self.code in _CONTEXT_IS_LOST


class NoDriver(Exception):
    """There is no CUDA driver, or it is too old; the text says why."""


class Driver:
    """The driver as this process uses it. Devices are numbered as this process sees them (CUDA_VISIBLE_DEVICES).

    What needs a context runs within ``on``. Pointers, streams and events are integers. Any method may raise CudaError; in any thread.

    Args:
        library: the loaded library.

    Raises:
        NoDriver: a function is missing, or the driver finds nothing that it can drive.
    """

    def __init__(self, library: Any) -> None:
        self._functions: Dict[str, Any] = {}
        for name, arguments in SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise NoDriver(f"the CUDA driver is too old: it has no {name}") from None
            function.argtypes, function.restype = list(arguments), c_int
            self._functions[name] = function
        self._lock = threading.Lock()
        self._contexts: Dict[int, int] = {}
        try:
            self._call("cuInit", 0)
        except CudaError as error:
            raise NoDriver(str(error)) from error

    # Devices

    def version(self) -> int:
        """The newest CUDA that it can run, 12040 for 12.4."""
        return self._out(c_int, "cuDriverGetVersion")

    def count(self) -> int:
        """How many devices this process sees."""
        return self._out(c_int, "cuDeviceGetCount")

    def uuid(self, device: int) -> bytes:
        """16 bytes that name the device, or the part of one, in every process."""
        name = ctypes.create_string_buffer(UUID_BYTES)
        self._call("cuDeviceGetUuid_v2", name, self._out(c_int, "cuDeviceGet", device))
        return name.raw

    def capability(self, device: int) -> Tuple[int, int]:
        """Its compute capability, (9, 0) of an H200."""
        number = self._out(c_int, "cuDeviceGet", device)
        return self._out(c_int, "cuDeviceGetAttribute", _MAJOR, number), self._out(c_int, "cuDeviceGetAttribute", _MINOR, number)

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Makes the device's primary context this thread's current one, and the one that was current before again afterwards: a model's
        library must find its own device as it left it. The first call for a device makes its context, which takes about 0.3 s.

        While any thread captures a graph, most of the functions here are forbidden to all, and fail the capture. What is done with them has no
        part in a model's graph, and so the thread says that it does not mean to be captured.
        """
        context = self._contexts.get(device)
        if context is None:
            with self._lock:
                if device not in self._contexts:
                    self._contexts[device] = self._out(c_void_p, "cuDevicePrimaryCtxRetain", self._out(c_int, "cuDeviceGet", device))
                context = self._contexts[device]
        mode = c_int(_RELAXED)
        self._call("cuCtxPushCurrent_v2", context)
        self._call("cuThreadExchangeStreamCaptureMode", byref(mode))
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", byref(mode))
            self._out(c_void_p, "cuCtxPopCurrent_v2")

    def memory(self) -> Tuple[int, int]:
        """Bytes of the device that are free, and all of them."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    # Memory

    def allocate(self, nbytes: int) -> int:
        """Device memory that can be exported; at least a byte."""
        return self._out(Pointer, "cuMemAlloc_v2", nbytes)

    def free(self, pointer: int) -> None:
        self._call("cuMemFree_v2", pointer)

    def extent(self, pointer: int) -> Tuple[int, int]:
        """Where the allocation that holds ``pointer`` begins, and its size in bytes."""
        base, size = Pointer(), c_size_t()
        self._call("cuMemGetAddressRange_v2", byref(base), byref(size), pointer)
        return base.value, size.value

    def export(self, base: int) -> bytes:
        """A handle by which other processes open the allocation that begins there."""
        handle = IpcHandle()
        self._call("cuIpcGetMemHandle", byref(handle), base)
        return bytes(handle.bytes)

    def open(self, handle: bytes) -> int:
        """Where this process sees the memory of another. It fails in the process that exported it."""
        opened = Pointer()
        self._call("cuIpcOpenMemHandle_v2", byref(opened), IpcHandle((c_ubyte * HANDLE_BYTES)(*handle)), _LAZY_PEER_ACCESS)
        return opened.value

    def close(self, base: int) -> None:
        """Gives back what ``open`` returned."""
        self._call("cuIpcCloseMemHandle", base)

    # Work

    def create_stream(self) -> int:
        return self._out(c_void_p, "cuStreamCreate", _NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def create_event(self) -> int:
        return self._out(c_void_p, "cuEventCreate", _DISABLE_TIMING)

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        """The event is reached when everything is done that the stream was given so far."""
        self._call("cuEventRecord", event, stream)

    def wait_for(self, event: int) -> None:
        """Blocks until it is reached."""
        self._call("cuEventSynchronize", event)

    def finish(self, stream: int) -> None:
        """Blocks until the stream has nothing to do."""
        self._call("cuStreamSynchronize", stream)

    def finish_all(self) -> None:
        """Blocks until every stream of the current context has nothing to do."""
        self._call("cuCtxSynchronize")

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Device to device, also to another one."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, nbytes, stream)

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", target, source, nbytes, stream)

    def copy_from_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", target, source, nbytes, stream)

    def _out(self, kind: Type[Any], function: str, *arguments: Any) -> int:
        result = kind()
        self._call(function, byref(result), *arguments)
        value: int = result.value
        return value

    def _call(self, function: str, *arguments: Any) -> None:
        code = self._functions[function](*arguments)
        if code:
            name = c_char_p()
            unknown = self._functions["cuGetErrorName"](code, byref(name))
            raise CudaError(function, code, "an unknown error" if unknown or name.value is None else name.value.decode())


def load() -> Driver:
    """The driver of this machine.

    Raises:
        NoDriver: there is none.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoDriver(f"there is no CUDA driver: {error}") from error
    return Driver(library)
