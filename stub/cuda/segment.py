"""Segments of device memory that this process can open: another's, or its own."""

from __future__ import annotations

import threading
from typing import Callable, Optional, Tuple

from ...shm.cuda.driver import CudaError, Driver
from ...shm.cuda.segment import DeviceSegment
from ..error import TritonModelException
from .devices import Device, Devices
from .memory import LentMemory
from .releases import releases


class CannotOpen(Exception):
    """Device memory of another process cannot be had in this one; the text says why."""


def open_memory(driver: Driver, handle: bytes, nbytes: int) -> int:
    """Where this process sees the memory of a handle, of which ``nbytes`` bytes are needed. Within ``Devices.on``.

    Raises:
        CannotOpen: it cannot be opened, or has fewer.
    """
    try:
        base = driver.open(handle)
        start, size = driver.extent(base)
    except CudaError as error:
        if error.context_is_lost:
            raise
        raise CannotOpen(str(error)) from error
    room = start + size - base
    if room < nbytes:
        driver.close(base)
        raise CannotOpen(f"it has {room} bytes instead of {nbytes}")
    return base


class ImportedSegment(DeviceSegment):
    """Opened once, when it is first needed, and closed when the server says that it is no more, which it does when nothing of it is lent.

    Args:
        refused: told why it cannot be opened.
        closed: told whether it is closed, in any thread, after ``close``.
    """

    __slots__ = ("_closed", "_lock", "_mapping", "_refused", "base")

    def __init__(
        self,
        segment_id: int,
        size: int,
        uuid: bytes,
        handle: bytes,
        refused: Callable[[int, str], None],
        closed: Callable[[ImportedSegment, bool], None],
    ) -> None:
        super().__init__(segment_id, size, uuid, handle)
        self._refused = refused
        self._closed = closed
        self._lock = threading.Lock()
        self._mapping: Optional[Tuple[Devices, Device]] = None
        self.base: Optional[int] = None

    def lend(self, offset: int, nbytes: int) -> LentMemory:
        """A block of it, which is opened when its address is needed."""
        return LentMemory(self, offset, nbytes)

    def refuse(self, why: str) -> None:
        """Tells the server that this process cannot have it."""
        self._refused(self.id, why)

    def find(self, devices: Devices) -> Device:
        """The device that it is on.

        Raises:
            TritonModelException: this process does not see it; the server knows, and will send nothing there any more.
        """
        try:
            return devices.find(self.uuid)
        except TritonModelException as error:
            self.refuse(str(error))
            raise

    def open(self, devices: Devices, device: Device) -> int:
        """Where it begins.

        Raises:
            TritonModelException: this process cannot open it; the server knows, and will send nothing there any more.
        """
        if self.base is None:
            with self._lock:
                if self.base is None:
                    self.base = self._open(devices, device)
        return self.base

    def _open(self, devices: Devices, device: Device) -> int:
        with devices.on(device) as driver:
            try:
                base = open_memory(driver, self.handle, self.size)
            except CannotOpen as error:
                self.refuse(str(error))
                raise TritonModelException(
                    f"the tensor's memory on GPU {device.ordinal} cannot be opened in this process: {error}"
                ) from error
        self._mapping = devices, device
        return base

    def close(self) -> None:
        """Unmapping may wait for the GPU, and the thread that reads what the server says must not. May be called again if that fails."""
        super().close()
        if self._mapping is None:
            self._closed(self, True)
        else:
            releases.later(self._leave)

    def _leave(self) -> None:
        assert self._mapping is not None
        devices, device = self._mapping
        done = False
        try:
            with devices.on(device) as driver:
                self._end(driver)
            self._mapping = self.base = None
            done = True
        finally:
            self._closed(self, done)

    def _end(self, driver: Driver) -> None:
        assert self.base is not None
        driver.close(self.base)

    def __del__(self) -> None:
        """It is closed by whom the server told, or with the process: not by the collection of garbage."""


class OwnSegment(ImportedSegment):
    """One that this process exports, which it cannot open, and need not. It is freed when the server says that nobody else has it open.

    Args:
        freed: told whether it is, likewise.
    """

    __slots__ = ()

    def __init__(
        self,
        segment_id: int,
        size: int,
        handle: bytes,
        place: Tuple[Devices, Device],
        base: int,
        freed: Callable[[ImportedSegment, bool], None],
    ) -> None:
        super().__init__(segment_id, size, place[1].uuid, handle, lambda *_: None, freed)
        self._mapping = place
        self.base = base

    def _end(self, driver: Driver) -> None:
        assert self.base is not None
        driver.free(self.base)
