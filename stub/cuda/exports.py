"""Device memory that this process exports, and the tensors that are copied there to be read by others.

A model's tensor stays where it is. What is sent is a copy in a segment that was exported once: it is as private as what goes through host
memory, any allocator's memory can be sent, and an importer that has opened a segment needs no call of the driver's to find a tensor in it.

A segment that is idle is taken out of use, and so is one in which nothing lies if a tensor finds no room otherwise: no tensor goes there any
more, the server is told, and the memory is freed when that says that nobody has it open. Until then it counts against the limit.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from ...shm.cuda.arena import DeviceArena, segment_bytes
from ...shm.cuda.driver import OUT_OF_MEMORY, CudaError
from ...shm.segment import SegmentTable
from ..error import TritonModelException
from .devices import Device, Devices
from .memory import DeviceMemory
from .releases import releases
from .segment import ImportedSegment, OwnSegment

PATTERN_BYTES = 512
"""What another process has to find at the beginning of a segment, so that it is known to see the same memory."""

BlockKey = Tuple[int, int]

_AGAIN_SECONDS = 60.0
"""When what cannot be exported is tried again: a GPU that was full may have room, and what is impossible is known soon."""


class _Exported:
    """The segments on one device. ``retired``: the sizes of those that are out of use and not free yet. ``closed_until``: before then no more
    are to be had. ``warned``: the log knows that tensors found no room."""

    def __init__(self) -> None:
        self.arena = DeviceArena()
        self.retired: Dict[int, int] = {}
        self.closed_until = 0.0
        self.warned = False


class Exports:
    """In any thread.

    Args:
        ask: asks the server for the number of a segment that is to be exported: (UUID, bytes, handle, first bytes) to its number.
        tell: tells the server of segments that were taken out of use, and waits for nothing.
        segments: where segments are found by number.
        reclaim: looks for blocks that come back.
        warn: tells the log.
        quantum: least size of a segment, in bytes.
        limit: of all segments on a device, in bytes.
    """

    def __init__(
        self,
        ask: Callable[[bytes, int, bytes, bytes], int],
        tell: Callable[[Sequence[int]], None],
        segments: SegmentTable,
        reclaim: Callable[[], None],
        warn: Callable[[str], None],
        quantum: int,
        limit: int,
    ) -> None:
        self._ask = ask
        self._tell = tell
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

    def shed(self) -> List[int]:
        """Takes segments out of use in which nothing lay since the last call; returns their numbers, which the server has to be told. While
        another thread looks for room, which may be for long, none is idle."""
        if not self._lock.acquire(False):
            return []
        try:
            retired = []
            for exported in self._by_device.values():
                retired += self._retire(exported, exported.arena.shed())
            return retired
        finally:
            self._lock.release()

    def _retire(self, exported: _Exported, numbers: List[int]) -> List[int]:
        for number in numbers:
            exported.retired[number] = self._segments[number].size
            del self._by_segment[number]
        return numbers

    def _freed(self, exported: _Exported, number: int) -> None:
        with self._lock:
            del exported.retired[number]

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
        left = self._limit - exported.arena.size - sum(exported.retired.values())
        if size > left:
            size = segment_bytes(nbytes, 1)
            if size > left:
                if self._make_room(exported, size - left):
                    return False
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

        def freed(_segment: ImportedSegment, done: bool) -> None:
            if done:
                self._freed(exported, number)

        releases.start()
        self._segments[number] = OwnSegment(number, size, handle, (devices, device), base, freed)
        self._by_segment[number] = exported
        exported.arena.add(number, size)
        return True

    def _make_room(self, exported: _Exported, missing: int) -> bool:
        """Whether there will soon be so many bytes more: segments in which nothing lies are taken out of use for it, if need be."""
        missing -= sum(exported.retired.values())
        if missing > 0:
            retired = self._retire(exported, exported.arena.make_room(missing))
            if not retired:
                return False
            self._tell(retired)
        return True
