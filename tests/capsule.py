"""DLPack capsules made and taken apart by hand, from ``dlpack.h`` and not from the code under test."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar, List, NamedTuple, Optional, Sequence, Tuple

LEGACY, VERSIONED = b"dltensor", b"dltensor_versioned"
CPU, CUDA, CUDA_HOST, METAL = 1, 2, 3, 8
INT, UINT, FLOAT, BFLOAT, COMPLEX, BOOL = 0, 1, 2, 4, 5, 6


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", DELETER))


class DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


_STRUCTS = {LEGACY: DLManagedTensor, VERSIONED: DLManagedTensorVersioned}

_api = ctypes.PyDLL(None)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_api.PyCapsule_GetName.restype = ctypes.c_char_p
_api.PyCapsule_GetName.argtypes = [ctypes.py_object]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def name_of(capsule: Any) -> bytes:
    name: bytes = _api.PyCapsule_GetName(capsule)
    return name


class Contents(NamedTuple):
    """What an unused capsule says. ``version`` and ``flags`` are None in a legacy one."""

    address: Optional[int]
    device: Tuple[int, int]
    dtype: Tuple[int, int, int]
    shape: List[int]
    strides: Optional[List[int]]
    byte_offset: int
    version: Optional[Tuple[int, int]]
    flags: Optional[int]


def contents(capsule: Any) -> Contents:
    name = name_of(capsule)
    managed = _STRUCTS[name].from_address(_api.PyCapsule_GetPointer(capsule, name))
    tensor = managed.tensor
    return Contents(
        tensor.data,
        (tensor.device_type, tensor.device_id),
        (tensor.code, tensor.bits, tensor.lanes),
        tensor.shape[: tensor.ndim],
        tensor.strides[: tensor.ndim] if tensor.strides else None,
        tensor.byte_offset,
        (managed.major, managed.minor) if name == VERSIONED else None,
        managed.flags if name == VERSIONED else None,
    )


class Producer:
    """Memory of a producer's own, a capsule over it, and the calls of its deleter."""

    _made: ClassVar[List[Producer]] = []  # their memory outlives every test, whoever forgets to delete it

    def __init__(
        self,
        data: bytes,
        shape: Sequence[int],
        *,
        strides: Optional[Sequence[int]] = None,
        dtype: Tuple[int, int, int] = (UINT, 8, 1),
        device: Tuple[int, int] = (CPU, 0),
        byte_offset: int = 0,
        name: bytes = LEGACY,
        version: Tuple[int, int] = (1, 0),
        flags: int = 0,
        has_deleter: bool = True,
    ) -> None:
        self.deleted: List[int] = []
        self.memory = ctypes.create_string_buffer(data, max(len(data), 1))
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        self._managed = managed = _STRUCTS[name]()
        managed.tensor = DLTensor(ctypes.addressof(self.memory), *device, len(shape), *dtype, self._shape, self._strides, byte_offset)
        if has_deleter:
            managed.deleter = DELETER(self.deleted.append)
        if name == VERSIONED:
            managed.major, managed.minor, managed.flags = *version, flags
        self.address = ctypes.addressof(managed)
        self.capsule = _api.PyCapsule_New(self.address, name, None)
        self._device = device
        self._made.append(self)

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self._device
