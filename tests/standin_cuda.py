"""A stand-in for libcuda.so.1, where there is no GPU: its functions in Python, over host memory.

What it proves is the protocol: which function is called with what, in which order, on which thread, in which process. It says nothing of
a real GPU's timing, of its driver's rules beyond those written here, or of any library that computes on one. Tests that use it have
``standin`` in their names.

It is harder than a GPU where that finds mistakes. Work given to a stream is done only when somebody waits for it, so that bytes read
without having waited are not there; and a stream can be held, like one with a long kernel in it. Device memory is an anonymous
file, which another process maps by its handle: so two processes see the same bytes, a handle of memory that was freed, or of a process that
has ended, opens nothing, the process that exported it cannot open it, and every function that needs a current context fails without one. What
is freed while another process has it open, which is undefined, is counted.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from stublet.shm.cuda.driver import SIGNATURES

NAMES = {
    1: "CUDA_ERROR_INVALID_VALUE",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    400: "CUDA_ERROR_INVALID_HANDLE",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    709: "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    900: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
}
LEGACY_STREAM = 1
_RELAXED = 2
_HANDLE = struct.Struct("<QQQQ")  # pid, descriptor there, inode, size

Work = Callable[[], None]


class Symbol:
    """A function as ctypes has it: it converts its arguments to ``argtypes``, or refuses them."""

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function
        self.argtypes: List[Any] = []
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        if len(arguments) != len(self.argtypes):
            raise TypeError(f"{self._function.__name__} takes {len(self.argtypes)} arguments, not {len(arguments)}")
        for kind, argument in zip(self.argtypes, arguments):
            kind.from_param(argument)
        return self._function(*arguments)


class Allocation:
    """Device memory: an anonymous file, mapped. Of another process's while that has it, by its number there; then the file is locked."""

    def __init__(self, size: int, handle: bytes = b"") -> None:
        self.size = size
        self.holders = 1
        self.handle = handle
        self.fd = -1
        fd = os.memfd_create("standin-cuda") if not handle else os.open("/proc/{}/fd/{}".format(*_HANDLE.unpack(handle)[:2]), os.O_RDWR)
        try:
            if not handle:
                os.ftruncate(fd, size)
                self.handle = _HANDLE.pack(os.getpid(), fd, os.fstat(fd).st_ino, size)
            elif os.fstat(fd).st_ino != _HANDLE.unpack(handle)[2]:
                raise OSError("freed, and the number taken by another file")
            self.mapping = mmap.mmap(fd, size)
            if handle:
                fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd
        self._view = ctypes.c_char.from_buffer(self.mapping)
        self.base = ctypes.addressof(self._view)

    def is_open_elsewhere(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def free(self) -> None:
        """Others that have it open keep it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        del self._view
        self.mapping.close()


class Stream:
    """Work that is done when somebody waits for it, and not while it is held."""

    def __init__(self) -> None:
        self.work: List[Work] = []
        self.free_to_run = threading.Event()
        self.free_to_run.set()
        self.lock = threading.RLock()

    def run(self) -> None:
        self.free_to_run.wait()
        with self.lock:
            while self.work:
                self.work.pop(0)()


class StandinCuda:
    """The library. ``calls``: the names of the functions that were called, in order. ``fails``: functions that fail, with their codes.
    ``limit``: bytes of each device. ``freed_while_open``: how much memory was freed that another process had open. ``captures``: a thread captures a graph, and means all the others.
    """

    def __init__(self, devices: int = 1, limit: int = 1 << 30) -> None:
        self.calls: List[str] = []
        self.fails: Dict[str, int] = {}
        self.devices = devices
        self.limit = limit
        self.captures = False
        self.freed_while_open = 0
        self.allocations: Dict[int, Allocation] = {}
        self.opened: Dict[int, Allocation] = {}
        self.streams: Dict[int, Stream] = {LEGACY_STREAM: Stream()}
        self.destroyed: Set[int] = set()
        self.events: Dict[int, Tuple[Optional[Stream], int]] = {}
        self._numbers = 16
        self._current = threading.local()
        self._texts: List[Any] = []
        for name in SIGNATURES:
            setattr(self, name, Symbol(self._checked(name, getattr(self, f"_{name}"))))

    def driver(self) -> Any:
        """The driver layer over it."""
        from stublet.shm.cuda.driver import Driver

        return Driver(self)

    def close(self) -> None:
        """Frees everything."""
        for allocation in [*self.allocations.values(), *self.opened.values()]:
            allocation.free()
        self.allocations.clear()
        self.opened.clear()

    def write(self, pointer: int, data: bytes, stream: Optional[int] = None) -> None:
        """Puts bytes in device memory; with a stream, as its work."""
        work = lambda: ctypes.memmove(pointer, data, len(data))  # noqa: E731
        if stream is None:
            work()
        else:
            self.streams[stream].work.append(work)

    def read(self, pointer: int, nbytes: int) -> bytes:
        return ctypes.string_at(pointer, nbytes)

    def _checked(self, name: str, function: Callable[..., int]) -> Callable[..., int]:
        bare = name.startswith(("cuInit", "cuDriver", "cuGetErrorName", "cuCtxPush", "cuThread", "cuDevice"))

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name]
            if not bare and not self._stack:
                return 201
            if self.captures and self.capture_mode != _RELAXED and not (bare or name.startswith("cuCtxPop")):
                return 900
            return function(*arguments)

        call.__name__ = name
        return call

    @property
    def _stack(self) -> List[int]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: List[int] = self._current.stack
        return stack

    @property
    def capture_mode(self) -> int:
        """Of this thread."""
        return getattr(self._current, "mode", 0)

    def _number(self) -> int:
        self._numbers += 16
        return self._numbers

    # Devices and contexts

    def _cuInit(self, flags: int) -> int:
        return 0 if self.devices else 100

    def _cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 13000
        return 0

    def _cuGetErrorName(self, code: int, out: Any) -> int:
        if code not in NAMES:
            return 1
        out._obj.value = NAMES[code].encode()
        return 0

    def _cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.devices
        return 0

    def _cuDeviceGet(self, out: Any, ordinal: int) -> int:
        if not 0 <= ordinal < self.devices:
            return 101
        out._obj.value = ordinal
        return 0

    def _cuDeviceGetUuid_v2(self, out: Any, device: int) -> int:
        out.raw = b"standin-device" + struct.pack("<H", device)
        return 0

    def _cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        out._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def _cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> int:
        out._obj.value = 0x1000 + device
        return 0

    def _cuCtxPushCurrent_v2(self, context: int) -> int:
        self._stack.append(context)
        return 0

    def _cuCtxPopCurrent_v2(self, out: Any) -> int:
        out._obj.value = self._stack.pop()
        return 0

    def _cuCtxSynchronize(self) -> int:
        for stream in list(self.streams.values()):
            stream.run()
        return 0

    def _cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        before, self._current.mode = self.capture_mode, mode._obj.value
        mode._obj.value = before
        return 0

    # Memory

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        total._obj.value = self.limit
        free._obj.value = self.limit - sum(a.size for a in self.allocations.values())
        return 0

    def _cuMemAlloc_v2(self, out: Any, nbytes: int) -> int:
        if nbytes <= 0:
            return 1
        if sum(a.size for a in self.allocations.values()) + nbytes > self.limit:
            return 2
        allocation = Allocation(nbytes)
        self.allocations[allocation.base] = allocation
        out._obj.value = allocation.base
        return 0

    def _cuMemFree_v2(self, pointer: int) -> int:
        allocation = self.allocations.pop(pointer, None)
        if allocation is None:
            return 1
        if allocation.fd >= 0 and allocation.is_open_elsewhere():
            self.freed_while_open += allocation.size
        allocation.free()
        return 0

    def _cuMemGetAddressRange_v2(self, base: Any, size: Any, pointer: int) -> int:
        for allocation in [*self.allocations.values(), *self.opened.values()]:
            if allocation.base <= pointer < allocation.base + allocation.size:
                base._obj.value, size._obj.value = allocation.base, allocation.size
                return 0
        return 1

    def _cuIpcGetMemHandle(self, out: Any, pointer: int) -> int:
        allocation = self.allocations.get(pointer)
        if allocation is None:
            return 1
        ctypes.memmove(ctypes.addressof(out._obj), allocation.handle.ljust(64, b"\0"), 64)
        return 0

    def _cuIpcOpenMemHandle_v2(self, out: Any, handle: Any, flags: int) -> int:
        data = bytes(handle.bytes)[: _HANDLE.size]
        pid, _, _, size = _HANDLE.unpack(data)
        if pid == os.getpid():
            return 201
        allocation = next((a for a in self.opened.values() if a.handle == data), None)
        if allocation is None:
            try:
                allocation = Allocation(size, data)
            except (OSError, OverflowError, ValueError):
                return 400
            allocation.holders = 0
            self.opened[allocation.base] = allocation
        allocation.holders += 1
        out._obj.value = allocation.base
        return 0

    def _cuIpcCloseMemHandle(self, pointer: int) -> int:
        allocation = self.opened.get(pointer)
        if allocation is None:
            return 1
        allocation.holders -= 1
        if not allocation.holders:
            self.opened.pop(pointer).free()
        return 0

    # Work

    def _cuStreamCreate(self, out: Any, flags: int) -> int:
        number = self._number()
        self.streams[number] = Stream()
        out._obj.value = number
        return 0

    def _cuStreamDestroy_v2(self, stream: int) -> int:
        if stream not in self.streams:
            return self._no_stream(stream)
        del self.streams[stream]
        self.destroyed.add(stream)
        return 0

    def _no_stream(self, stream: int) -> int:
        """To name one that was destroyed is undefined: here it is an error like that of a lost context."""
        return 709 if stream in self.destroyed else 400

    def _cuStreamSynchronize(self, stream: int) -> int:
        if stream not in self.streams:
            return self._no_stream(stream)
        self.streams[stream].run()
        return 0

    def _cuEventCreate(self, out: Any, flags: int) -> int:
        number = self._number()
        self.events[number] = (None, 0)
        out._obj.value = number
        return 0

    def _cuEventDestroy_v2(self, event: int) -> int:
        return 0 if self.events.pop(event, None) is not None else 400

    def _cuEventRecord(self, event: int, stream: int) -> int:
        if event not in self.events:
            return 400
        if stream not in self.streams:
            return self._no_stream(stream)
        _, count = self.events[event]
        self.events[event] = (self.streams[stream], count + 1)
        return 0

    def _cuEventSynchronize(self, event: int) -> int:
        if event not in self.events:
            return 400
        stream, _ = self.events[event]
        if stream is not None:
            stream.run()
        return 0

    def _cuMemcpyDtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        if not (self._holds(target, nbytes) and self._holds(source, nbytes)):
            return 1
        return self._copy(target, source, nbytes, stream)

    def _cuMemcpyDtoHAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        return self._copy(target, source, nbytes, stream) if self._holds(source, nbytes) else 1

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        return self._copy(target, source, nbytes, stream) if self._holds(target, nbytes) else 1

    def _holds(self, pointer: int, nbytes: int) -> bool:
        return any(a.base <= pointer and pointer + nbytes <= a.base + a.size for a in [*self.allocations.values(), *self.opened.values()])

    def _copy(self, target: int, source: int, nbytes: int, stream: int) -> int:
        if stream not in self.streams:
            return self._no_stream(stream)
        self.streams[stream].work.append(lambda: ctypes.memmove(target, source, nbytes))
        return 0
