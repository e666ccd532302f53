"""Device memory that this process exports, and the tensors that are copied there to be read by others.

A model's tensor stays where it is. What is sent is a copy in a segment that was exported once: it is as private as what goes through host
memory, any allocator's memory can be sent, and an importer that has opened a segment needs no call of the driver's to find a tensor in it.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
from time import monotonic
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from ...shm.cuda.arena import DeviceArena, segment_bytes
from ...shm.cuda.driver import OUT_OF_MEMORY, CudaError
from ...shm.segment import SegmentTable
from ..error import TritonModelException
from .devices import Device, Devices
from .memory import DeviceMemory
from .segment import OwnSegment

PATTERN_BYTES = 512
"""What another process has to find at the beginning of a segment, so that it is known to see the same memory."""

BlockKey = Tuple[int, int]

_AGAIN_SECONDS = 60.0
"""When what cannot be exported is tried again: a GPU that was full may have room, and what is impossible is known soon."""


class _Exported:
    """The segments on one device. ``closed_until``: before then no more are to be had. ``warned``: the log knows that tensors found no
    room."""

    def __init__(self) -> None:
        self.arena = DeviceArena()
        self.closed_until = 0.0
        self.warned = False


class Exports:
    """In any thread.

    Args:
        ask: asks the server for the number of a segment that is to be exported: (UUID, bytes, handle, first bytes) to its number.
        segments: where segments are found by number.
        reclaim: looks for blocks that come back.
        warn: tells the log.
        quantum: least size of a segment, in bytes.
        limit: of all segments on a device, in bytes.
    """

    def __init__(
        self,
        ask: Callable[[bytes, int, bytes, bytes], int],
        segments: SegmentTable,
        reclaim: Callable[[], None],
        warn: Callable[[str], None],
        quantum: int,
        limit: int,
    ) -> None:
        self._ask = ask
        self._segments = segments
        self._reclaim = reclaim
        self._warn = warn
        self._quantum = quantum
        self._limit = limit
        # One thread may need it twice: to find room it may have to take what comes back.
        self._lock = threading.RLock()
        self._by_device: Dict[int, _Exported] = {}
        self._by_segment: Dict[int, _Exported] = {}

    def stage(self, memory: DeviceMemory, offset: int, nbytes: int) -> Optional[BlockKey]:
        """Copies ``nbytes`` bytes at ``offset`` of ``memory`` to where others can read them; the block, which the server gives back. None if
        there is no room: the tensor has to go through host memory.

        Raises:
            TritonModelException: the copy failed.
        """
        devices, device = memory.devices, memory.device
        with self._lock:
            place = self._take(devices, device, nbytes)
        if place is None:
            return None
        segment, start = place
        try:
            if nbytes:
                devices.copy(device, self._segments[segment].open(devices, device) + start, memory.address() + offset, nbytes)
        except BaseException:
            self.release([place])
            raise
        return place

    def release(self, keys: Sequence[BlockKey]) -> None:
        """Takes blocks back.

        Raises:
            KeyError: one that is not in use.
        """
        with self._lock:
            for key in keys:
                self._by_segment[key[0]].arena.give(key)

    def __contains__(self, key: Any) -> bool:
        """Whether a block of these is in use there."""
        exported = self._by_segment.get(key[0])
        return exported is not None and key in exported.arena

    def _take(self, devices: Devices, device: Device, nbytes: int) -> Optional[BlockKey]:
        exported = self._by_device.setdefault(device.ordinal, _Exported())
        place = exported.arena.take(nbytes)
        if place is None and monotonic() >= exported.closed_until:
            self._reclaim()
            place = exported.arena.take(nbytes)
            if place is None and self._grow(devices, device, exported, nbytes):
                place = exported.arena.take(nbytes)
        return place

    def _no_room(self, device: Device, exported: _Exported, why: str) -> bool:
        if not exported.warned:
            exported.warned = True
            self._warn(f"a tensor on GPU {device.ordinal} goes through host memory, and so may others: {why}")
        return False

    def _grow(self, devices: Devices, device: Device, exported: _Exported, nbytes: int) -> bool:
        """Exports one more segment, if there may be one."""
        size = segment_bytes(nbytes, self._quantum)
        if exported.arena.size + size > self._limit:
            size = segment_bytes(nbytes, 1)
            if exported.arena.size + size > self._limit:
                reason = f"of the {self._limit} bytes of device memory that it may export, {exported.arena.taken} are in use"
                return self._no_room(device, exported, f"{reason} (gpu-ipc-limit-byte-size)")
        pattern = ctypes.create_string_buffer(secrets.token_bytes(PATTERN_BYTES), PATTERN_BYTES)
        with devices.on(device) as driver:
            base = 0
            try:
                base = driver.allocate(size)
                handle = driver.export(base)
                driver.copy_from_host(base, ctypes.addressof(pattern), PATTERN_BYTES, device.stream)
                driver.finish(device.stream)
                number = self._ask(device.uuid, size, handle, pattern.raw)
            except CudaError as error:
                if error.context_is_lost:
                    raise
                if base:
                    driver.free(base)
                if error.code != OUT_OF_MEMORY:  # which may change at any time
                    exported.closed_until = monotonic() + _AGAIN_SECONDS
                return self._no_room(device, exported, str(error))
            except TritonModelException:
                driver.free(base)
                exported.closed_until = monotonic() + _AGAIN_SECONDS  # the server's log says why
                return False
        self._segments[number] = OwnSegment(number, size, device.uuid, handle, base)
        self._by_segment[number] = exported
        exported.arena.add(number, size)
        return True
