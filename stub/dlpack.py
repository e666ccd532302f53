"""DLPack in both directions, legacy and versioned capsules, in ctypes.

numpy knows no BF16, and refuses to export or import some read-only arrays, so the structures of ``dlpack.h`` (version 1) are
written out here. Source: https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html; spec 1.4.2.

Exported capsules are nevertheless numpy's, over unsigned integers of the same size, with their fields set right afterwards: what
numpy frees them with is C. A destructor in Python would also run while an exception propagates (``[t.to_dlpack(), 1 / 0]``),
which the interpreter does not survive.
"""

from __future__ import annotations

import ctypes
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..shm.arena import ALIGNMENT
from ..shm.dtype import BY_NAME, DataType, element_count
from .error import TritonModelException

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_VERSION = (1, 0)
_FLAG_READ_ONLY, _FLAG_IS_COPIED = 1, 2
_NOT_CONTIGUOUS = "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."

_ON_GPU = (CUDA, CUDA_MANAGED)

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
_KINDS = {"INT": _INT, "UINT": _UINT, "FP": _FLOAT}


def _type_codes() -> dict:
    codes = {"BOOL": (_BOOL, 8), "BF16": (_BFLOAT, 16)}
    for name in BY_NAME:
        kind = name.rstrip("0123456789")
        if kind in _KINDS:
            codes[name] = (_KINDS[kind], int(name[len(kind) :]))
    return codes


_CODE_OF = _type_codes()
_NAME_OF = {code: name for name, code in _CODE_OF.items()}


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_LEGACY, _VERSIONED = b"dltensor", b"dltensor_versioned"
_USED = {_LEGACY: b"used_dltensor", _VERSIONED: b"used_dltensor_versioned"}
_STRUCT = {_LEGACY: _Managed, _VERSIONED: _ManagedVersioned}

# A handle of our own: prototypes set on ctypes.pythonapi would be those of every library in the process.
_api = ctypes.PyDLL(None)
_api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]

_UNSIGNED = {itemsize: np.dtype(f"u{itemsize}").str for itemsize in (1, 2, 4, 8)}


class _Lender:
    """Base of an array over memory that ``owner`` keeps alive; holds the one reference to it."""

    def __init__(self, owner: object, address: int, itemsize: int, shape: Sequence[int]) -> None:
        self._owner = owner
        self.__array_interface__ = {"version": 3, "typestr": _UNSIGNED[itemsize], "shape": tuple(shape), "data": (address, False)}


def _numpy_is_versioned() -> bool:
    try:
        np.empty(0).__dlpack__(max_version=_VERSION)
    except TypeError:  # numpy before 2.1
        return False
    return True


_NUMPY_IS_VERSIONED = _numpy_is_versioned()


def export_capsule(
    owner: object,
    address: int,
    dtype: DataType,
    shape: Sequence[int],
    versioned: bool,
    read_only: bool = False,
    device: Tuple[int, int] = (CPU, 0),
    copied: bool = False,
) -> Any:
    """A capsule for dense memory; exactly one reference to ``owner`` is held until the consumer, or the unused capsule, ends.

    Args:
        device: where it is. numpy, which makes the capsule, looks at no byte of it.
        copied: nobody else has this memory.

    Raises:
        TritonModelException: the data type is BYTES.
    """
    if dtype.name not in _CODE_OF:
        raise TritonModelException("DLPack does not have support for string tensors.")
    # numpy before 2 takes no null pointer, which is what an empty tensor may have.
    array = np.asarray(_Lender(owner, address or ALIGNMENT, dtype.itemsize, shape))
    if versioned and _NUMPY_IS_VERSIONED:
        name, capsule = _VERSIONED, array.__dlpack__(max_version=_VERSION)
    else:
        name, capsule = _LEGACY, array.__dlpack__()
    managed = _STRUCT[name].from_address(_api.PyCapsule_GetPointer(capsule, name))
    if name == _VERSIONED:
        managed.flags = (_FLAG_READ_ONLY if read_only else 0) | (_FLAG_IS_COPIED if copied else 0)
    managed.tensor.device = _Device(*device)
    managed.tensor.dtype = _Type(*_CODE_OF[dtype.name], 1)
    managed.tensor.strides = None
    managed.tensor.data = address
    return capsule


class Imported(NamedTuple):
    """A consumed tensor: ``data`` is UINT8 [nbytes], or a ``cuda.memory.DeviceMemory``; the producer's memory lives as long as any view of
    it."""

    data: Any
    dtype: DataType
    shape: Tuple[int, ...]


class _Owner:
    """Keeps imported memory, as the base of the arrays over it; runs the producer's deleter when it is gone."""

    def __init__(self, managed: Any, place: int) -> None:
        self._managed, self._place = managed, place

    def array(self, address: int, nbytes: int, read_only: bool) -> np.ndarray:
        """Of which it is the base, UINT8 [nbytes]."""
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, read_only)}
        return np.asarray(self)

    def __del__(self) -> None:
        deleter = self._managed.deleter
        if deleter:
            deleter(self._place)


def import_tensor(obj: Any) -> Imported:
    """Consumes a capsule, or an object with ``__dlpack__`` and ``__dlpack_device__``.

    Raises:
        TritonModelException: neither; a device that cannot be used; not dense in C order; a data type that Triton does not have.
    """
    if type(obj).__name__ == "PyCapsule":
        return _consume(obj, is_complete=False)
    return _consume(_ask(obj), is_complete=True)


def _ask(obj: Any) -> Any:
    if not (hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__")):
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and `__dlpack_device__` attributes"
        )
    device, ordinal = map(int, obj.__dlpack_device__())
    _check_device(device)
    if device in _ON_GPU:
        from .cuda.dlpack import when_complete

        return when_complete(ordinal, lambda stream: _ask_for(obj, stream=stream))
    return _ask_for(obj)


def _ask_for(obj: Any, **stream: int) -> Any:
    try:
        return obj.__dlpack__(max_version=_VERSION, **stream)
    except (TypeError, BufferError):
        # A producer from before DLPack 1.0 knows no max_version; numpy exports read-only arrays in neither form.
        return obj.__dlpack__(**stream)


def _check_device(device: int) -> None:
    if device in _ON_GPU:
        from ..shm.cuda.driver import NoDriver
        from .cuda.devices import devices

        try:
            devices()
        except NoDriver:
            raise TritonModelException(
                "DLPack capsule passed pointer to memory allocated on GPU device, when GPU is not available"
            ) from None
    elif device not in (CPU, CUDA_HOST):
        raise TritonModelException(f"DLDevice type {device} is not support by Python backend.")


def _consume(capsule: Any, is_complete: bool) -> Imported:
    """``is_complete``: whatever was done to the memory is done; otherwise, on a GPU, that is waited for."""
    for name in (_VERSIONED, _LEGACY):
        if _api.PyCapsule_IsValid(capsule, name):
            break
    else:
        raise TritonModelException("The DLPack capsule was consumed before, or is not a DLPack capsule.")
    place = _api.PyCapsule_GetPointer(capsule, name)
    managed = _STRUCT[name].from_address(place)
    if name == _VERSIONED and managed.major != _VERSION[0]:
        raise TritonModelException(f"DLPack version {managed.major}.{managed.minor} is not supported; version 1 is.")
    tensor = managed.tensor
    _check_device(tensor.device.type)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = [tensor.strides[i] for i in range(tensor.ndim)] if tensor.strides else None
    if strides is not None and not _is_dense(shape, strides):
        raise TritonModelException(_NOT_CONTIGUOUS)
    dtype = _data_type(tensor.dtype)
    nbytes = element_count(shape) * dtype.itemsize
    if tensor.device.type in _ON_GPU:
        from .cuda.dlpack import adopt

        ordinal, address = tensor.device.id, (tensor.data or 0) + tensor.byte_offset

        def take() -> _Owner:
            _api.PyCapsule_SetName(capsule, _USED[name])
            return _Owner(managed, place)

        return Imported(adopt(ordinal, address, nbytes, is_complete, take), dtype, shape)
    _api.PyCapsule_SetName(capsule, _USED[name])
    if nbytes == 0:
        if managed.deleter:
            managed.deleter(place)
        return Imported(np.empty(0, np.uint8), dtype, shape)
    read_only = name == _VERSIONED and bool(managed.flags & _FLAG_READ_ONLY)
    data = _Owner(managed, place).array(tensor.data + tensor.byte_offset, nbytes, read_only)
    return Imported(data, dtype, shape)


def _is_dense(shape: Sequence[int], strides: List[int]) -> bool:
    """Whether the strides (in elements) are those of C order; those of dimensions of size 1, or of an empty tensor, say nothing."""
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _data_type(dtype: _Type) -> DataType:
    if dtype.code == _BFLOAT and dtype.bits != 16:
        raise TritonModelException(f"Expected BF16 tensor to have 16 bits, but had: {dtype.bits}")
    name: Optional[str] = _NAME_OF.get((dtype.code, dtype.bits)) if dtype.lanes == 1 else None
    if name is None:
        raise TritonModelException("Dtype is invalid.")
    return BY_NAME[name]
