"""Memory of a GPU that a client has registered, at the stub's end: opened once, read and written where it is."""

from __future__ import annotations

import threading
import weakref
from typing import Optional

import numpy as np

from ..error import TritonModelException
from .devices import Device, Devices, here
from .memory import DeviceMemory
from .releases import releases
from .segment import CannotOpen, open_memory
from .tensor import DeviceTensor

ALIGNMENT = 256
"""Of a tensor that a model is given where it lies, as of memory that CUDA allocates: a kernel that finds an address of a smaller one than it
was compiled for loses the context."""


class _Mapping:
    """The memory as this process has it open, from ``base``: closed when nobody refers to it, and nothing that the model does reads it."""

    def __init__(self, devices: Devices, device: Device, base: int) -> None:
        self.devices = devices
        self.device = device
        self.base = base

        def close() -> None:
            with devices.on(device) as driver:
                driver.finish_all()
                driver.close(base)

        releases.start()
        weakref.finalize(self, releases.later, close).atexit = False


class DeviceRegion:
    """``size`` bytes on the GPU ``uuid``, which a client has registered as ``name``. In any thread. Every method but ``close`` may raise
    TritonModelException: the memory cannot be opened in this process, or a copy failed."""

    def __init__(self, name: str, size: int, uuid: bytes, handle: bytes) -> None:
        self.name = name
        self._size = size
        self._uuid = uuid
        self._handle = handle
        self._lock = threading.Lock()
        self._mapping: Optional[_Mapping] = None

    def lend(self, offset: int, nbytes: int) -> DeviceMemory:
        """These bytes for the model: where they are, or a copy where an array should not begin there. What the model keeps of them stays
        open."""
        mapping = self._open()
        devices, device = mapping.devices, mapping.device
        if (mapping.base + offset) % ALIGNMENT:
            copy = DeviceMemory.allocate(devices, device, nbytes)
            devices.copy(device, copy.address(), mapping.base + offset, nbytes)
            return copy
        return DeviceMemory(devices, device, mapping.base + offset, nbytes, mapping)

    def read(self, offset: int, target: np.ndarray) -> None:
        """Copies from ``offset`` to host memory: UINT8 [n], which is filled."""
        mapping = self._open()
        mapping.devices.copy_to_host(mapping.device, _address(target), mapping.base + offset, target.nbytes)

    def write(self, offset: int, data: np.ndarray) -> None:
        """Copies host memory to ``offset``."""
        mapping = self._open()
        mapping.devices.copy_from_host(mapping.device, mapping.base + offset, _address(data), data.nbytes)

    def copy(self, offset: int, tensor: DeviceTensor) -> None:
        """Copies a tensor on a GPU to ``offset``."""
        mapping = self._open()
        source, target = tensor.begin(), mapping.base + offset
        if source != target:
            mapping.devices.copy(mapping.device, target, source, tensor._nbytes)

    def close(self) -> None:
        """It is not registered any more."""
        with self._lock:
            self._mapping = None

    def _open(self) -> _Mapping:
        with self._lock:
            if self._mapping is None:
                devices = here()
                device = devices.find(self._uuid)
                with devices.on(device) as driver:
                    try:
                        base = open_memory(driver, self._handle, self._size)
                    except CannotOpen as error:
                        raise TritonModelException(
                            f"its memory on GPU {device.ordinal} cannot be opened in this process: {error}"
                        ) from error
                self._mapping = _Mapping(devices, device, base)
            return self._mapping


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
