"""Tensors in the memory of a GPU (spec 1.4, 4)."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import numpy as np

from ...shm.cuda.driver import ANY_STREAM, LEGACY_STREAM
from ...shm.dtype import DataType
from .. import dlpack
from ..error import TritonModelException
from ..tensor import Tensor, device_number
from .devices import devices
from .memory import DeviceMemory


class DeviceTensor(Tensor):
    """A ``Tensor`` whose elements are on a GPU. They are all there whenever a model has it: whoever reads it need not wait for anybody."""

    __slots__ = ("_memory",)

    _on_device = True
    _memory: DeviceMemory

    @classmethod
    def of(cls, name: str, dtype: DataType, shape: Sequence[int], memory: DeviceMemory, offset: int, nbytes: int) -> DeviceTensor:
        """``nbytes`` bytes at ``offset`` of ``memory``."""
        tensor = cls.__new__(cls)
        tensor._name = name
        tensor._dtype = dtype
        tensor._shape = tuple(shape)
        tensor._data = tensor._array = tensor._frozen = None
        tensor._offset = offset
        tensor._nbytes = nbytes
        tensor._memory = memory
        return tensor

    def is_cpu(self) -> bool:
        return False

    def as_numpy(self) -> np.ndarray:
        """There is no array of it.

        Raises:
            TritonModelException: always.
        """
        raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy. Use tensor.cpu().as_numpy().")

    def cpu(self) -> Tensor:
        return self._copied_to(np.empty(self._nbytes, np.uint8))

    def to(self, device: str) -> Tensor:
        wanted = device_number(device)
        if wanted is None:
            return self.cpu()
        return self if wanted == self._memory.device.ordinal else on_device(self.cpu(), wanted)

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (dlpack.CUDA, self._memory.device.ordinal)

    def to_dlpack(self) -> Any:
        # Nobody says on which stream it will be read.
        return self._exported(None, versioned=False)

    def __dlpack__(
        self,
        stream: Optional[int] = None,
        *,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """The array API's export (2023.12): versioned when ``max_version`` allows it.

        Args:
            stream: on which the consumer reads it: None or 1 for the legacy default stream, 2 for that of the thread, the address of
                another, or -1. There is nothing to wait for on it; the memory is given back when it has come so far.
            dl_device: (1, 0) for a copy in host memory.

        Raises:
            TypeError, ValueError: no stream of CUDA's.
            BufferError: it cannot be there, or not without the copy that must not be made.
        """
        if stream is not None and (not isinstance(stream, int) or isinstance(stream, bool)):
            raise TypeError(f"stream must be an integer or None, not {type(stream).__name__}")
        if stream is not None and (stream == 0 or stream < ANY_STREAM):
            raise ValueError(f"{stream} is no stream: 0 could be any of several default streams")
        versioned = max_version is not None and max_version[0] >= 1
        here = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) == (dlpack.CPU, 0):
            if copy is False:
                raise BufferError(f"the tensor '{self._name}' is on a GPU and cannot be in CPU memory without a copy")
            return self.cpu()._capsule(versioned, copied=True)
        if dl_device is not None and tuple(dl_device) != here:
            raise BufferError(f"the tensor '{self._name}' is on device {here} and cannot be exported to device {tuple(dl_device)}")
        if copy:
            return self._copied()._exported(None, versioned, copied=True)
        return self._exported(LEGACY_STREAM if stream is None else stream, versioned)

    def _exported(self, stream: Optional[int], versioned: bool, copied: bool = False) -> Any:
        address = self._memory.address(stream) + self._offset if self._nbytes else 0
        return dlpack.export_capsule(self, address, self._dtype, self._shape, versioned, device=self.__dlpack_device__(), copied=copied)

    def begin(self) -> int:
        """Where its first element is; 0 if it has none."""
        return self._memory.address() + self._offset if self._nbytes else 0

    def _copied(self) -> DeviceTensor:
        """The same in other memory of the device."""
        memory = self._memory
        copy = DeviceMemory.allocate(memory.devices, memory.device, self._nbytes)
        if self._nbytes:
            memory.devices.copy(memory.device, copy.address(), memory.address() + self._offset, self._nbytes)
        return DeviceTensor.of(self._name, self._dtype, self._shape, copy, 0, self._nbytes)

    def _copied_to(self, target: np.ndarray) -> Tensor:
        """The same in host memory: ``target`` is UINT8 [nbytes], which it fills."""
        memory = self._memory
        if self._nbytes:
            address = memory.address() + self._offset
            memory.devices.copy_to_host(memory.device, target.__array_interface__["data"][0], address, self._nbytes)
        return Tensor._over(self._name, self._dtype, self._shape, target, 0, self._nbytes)

    def _wire(self) -> np.ndarray:
        return self.cpu()._wire()


def on_device(tensor: Tensor, device: int) -> DeviceTensor:
    """A copy of a tensor in CPU memory on that GPU of this process.

    Raises:
        NoDriver: there is none.
        TritonModelException: not that one, or it has no room.
    """
    found = devices()
    target = found.get(device)
    memory = DeviceMemory.allocate(found, target, tensor._nbytes)
    data = tensor._wire()
    found.copy_from_host(target, memory.address(), data.__array_interface__["data"][0], tensor._nbytes)
    return DeviceTensor.of(tensor._name, tensor._dtype, tensor._shape, memory, 0, tensor._nbytes)
