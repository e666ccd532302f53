"""``pb_utils.Tensor`` and ``pb_utils.empty`` (spec 1.4)."""

from __future__ import annotations

from operator import index
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np

from ..shm import bytes_codec
from ..shm.dtype import BF16, BY_CONFIG_NAME, BY_NAME, BY_NUMPY, BYTES, DataType, element_count
from . import dlpack
from .error import TritonModelException
from .host import host

_EMPTY_NAME = "Tensor name cannot be an empty string."


class Tensor:
    """A named tensor: an input of a request, or an output of a response.

    Args:
        name: the name in the model's configuration.
        ndarray: any shape; a numeric or bool dtype of Triton's table, or object or fixed-width bytes for BYTES. A C-contiguous numeric
            array is referenced, not copied; any other is copied here.

    Raises:
        TypeError: ``name`` is not a str, or ``ndarray`` not an array.
        TritonModelException: empty name, or a dtype that Triton does not have.
    """

    __slots__ = ("_array", "_data", "_dtype", "_frozen", "_name", "_nbytes", "_offset", "_shape")

    _on_device = False
    """Whether it is a ``cuda.tensor.DeviceTensor``."""

    def __init__(self, name: str, ndarray: np.ndarray) -> None:
        if not isinstance(name, str):
            raise TypeError(f"Tensor: name must be str, not {type(name).__name__}")
        if not isinstance(ndarray, np.ndarray):
            raise TypeError(f"Tensor: a numpy array is needed, not {type(ndarray).__name__}")
        if not name:
            raise TritonModelException(_EMPTY_NAME)
        dtype = BY_NUMPY.get(ndarray.dtype)
        if dtype is None:
            if ndarray.dtype.kind != "S":
                raise TritonModelException("NumPy dtype is not supported.")
            dtype = BYTES
        self._name = name
        self._dtype: DataType = dtype
        self._shape: Tuple[int, ...] = ndarray.shape
        self._offset = 0
        self._frozen: Any = None  # the bytes as they were when the tensor was first sent
        if dtype is BYTES:
            self._data: Optional[np.ndarray] = np.frombuffer(bytes_codec.encode(as_items(ndarray)), np.uint8)
            self._array: Optional[np.ndarray] = None
            self._nbytes = self._data.size
        else:
            self._data = None
            self._array = ndarray if ndarray.flags.c_contiguous else np.array(ndarray, order="C")
            self._nbytes = ndarray.nbytes

    @classmethod
    def _over(cls, name: str, dtype: DataType, shape: Sequence[int], data: np.ndarray, offset: int, nbytes: int) -> Tensor:
        """A tensor over ``nbytes`` bytes of ``data`` (UINT8), of which every array made from it is a view."""
        tensor = cls.__new__(cls)
        tensor._name = name
        tensor._dtype = dtype
        tensor._shape = tuple(shape)
        tensor._data = data
        tensor._offset = offset
        tensor._nbytes = nbytes
        tensor._array = None
        tensor._frozen = None
        return tensor

    def name(self) -> str:
        return self._name

    def shape(self) -> List[int]:
        return list(self._shape)

    def triton_dtype(self) -> int:
        """The data type's number in Triton (FP32 is 11)."""
        return self._dtype.code

    def is_cpu(self) -> bool:
        """Whether the elements are in CPU memory, and not in that of a GPU."""
        return True

    def cpu(self) -> Tensor:
        """The tensor in CPU memory: itself, or, of one on a GPU, a copy. Not in Triton's own pb_utils."""
        return self

    def to(self, device: str) -> Tensor:
        """The tensor on a device, "cpu" or "cuda:N" with the number of a GPU of this process: itself if it is there, else a copy. Not in
        Triton's own pb_utils.

        Raises:
            TritonModelException: no such device; a BYTES tensor, which is never on a GPU; or the GPU has no room for it.
        """
        wanted = device_number(device)
        if wanted is None:
            return self
        if self._dtype is BYTES:
            raise TritonModelException(f"Tensor '{self._name}' is a BYTES tensor, and those are in CPU memory only.")
        from ..shm.cuda.driver import NoDriver
        from .cuda.tensor import on_device

        try:
            return on_device(self, wanted)
        except NoDriver as error:
            raise TritonModelException(f"Tensor '{self._name}' cannot be moved to '{device}': {error}") from error

    def as_numpy(self) -> np.ndarray:
        """The tensor as an array of its shape, the same one at each call; for an input, a writable view of shared memory.

        BYTES gives an object array of ``bytes``.

        Raises:
            TritonModelException: the data type is BF16, which numpy does not have.
        """
        array = self._array
        if array is None:
            dtype = self._dtype
            if dtype is BYTES:
                items = bytes_codec.decode(self._wire())
                array = np.empty(len(items), object)
                array[:] = items
                array = array.reshape(self._shape)
            elif dtype is BF16:
                raise TritonModelException(
                    "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
                )
            else:
                array = np.ndarray(self._shape, dtype.numpy, self._data, self._offset)
            self._array = array
        return array

    def to_dlpack(self) -> Any:
        """A capsule ``dltensor`` over the same memory, dense in C order.

        Raises:
            TritonModelException: the data type is BYTES.
        """
        return self._capsule(versioned=False)

    def __dlpack__(
        self,
        stream: Optional[int] = None,
        *,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """The array API's export (2023.12): versioned when ``max_version`` allows it.

        Raises:
            BufferError: another device than the tensor's is asked for.
            TritonModelException: the data type is BYTES.
        """
        if dl_device is not None and tuple(dl_device) != (dlpack.CPU, 0):
            raise BufferError(f"the tensor '{self._name}' is in CPU memory and cannot be exported to device {dl_device}")
        versioned = max_version is not None and max_version[0] >= 1
        if copy:
            wire = self._wire()
            return Tensor._over(self._name, self._dtype, self._shape, wire.copy(), 0, wire.size)._capsule(versioned, copied=True)
        return self._capsule(versioned)

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (dlpack.CPU, 0)

    @staticmethod
    def from_dlpack(name: str, obj: Any) -> Tensor:
        """A tensor over the memory of a DLPack capsule, or of an object with ``__dlpack__`` and ``__dlpack_device__``. No copy.

        Of an object on a GPU it waits for what its producer still has to do to the memory, on whatever stream; for a bare capsule, which
        does not know, for everything that the process has the device do. So pass the object.

        Raises:
            TypeError: ``name`` is not a str.
            TritonModelException: empty name, not a DLPack tensor, not dense in C order, a device or data type that is not supported.
        """
        if not isinstance(name, str):
            raise TypeError(f"Tensor.from_dlpack: name must be str, not {type(name).__name__}")
        if not name:
            raise TritonModelException(_EMPTY_NAME)
        data, dtype, shape = dlpack.import_tensor(obj)
        if not isinstance(data, np.ndarray):
            from .cuda.tensor import DeviceTensor

            return DeviceTensor.of(name, dtype, shape, data, 0, data.nbytes)
        return Tensor._over(name, dtype, shape, data, 0, data.size)

    def _wire(self) -> np.ndarray:
        """The tensor's bytes as they travel, UINT8 [nbytes], without a copy."""
        if self._data is not None:
            return self._data[self._offset : self._offset + self._nbytes]
        assert self._array is not None
        return self._array.reshape(-1).view(np.uint8)

    def _snapshot(self) -> Any:
        """The tensor's bytes, for a small tensor: what they were when it was first sent, if it is one over an array of the model's."""
        if self._data is not None:
            return self._wire()
        if self._frozen is None:
            assert self._array is not None
            self._frozen = self._array.tobytes()
        return self._frozen

    def _capsule(self, versioned: bool, copied: bool = False) -> Any:
        address, read_only = self._wire().__array_interface__["data"] if self._nbytes else (0, False)
        return dlpack.export_capsule(self, address, self._dtype, self._shape, versioned, read_only, copied=copied)

    def __repr__(self) -> str:
        return f"Tensor({self._name!r}, {self._dtype.name}, {list(self._shape)})"


def tensor_over(name: str, dtype: DataType, shape: Sequence[int], data: Any, offset: int, nbytes: int) -> Tensor:
    """A tensor over ``nbytes`` bytes of what is borrowed: an array, or a ``cuda.memory.LentMemory``."""
    if isinstance(data, np.ndarray):
        return Tensor._over(name, dtype, shape, data, offset, nbytes)
    tensor: Tensor = data.tensor(name, dtype, shape, offset, nbytes)
    return tensor


def device_number(device: str) -> Optional[int]:
    """The number of the GPU that a text such as "cuda:1" names, None for "cpu".

    Raises:
        TypeError: not a str.
        TritonModelException: it names neither.
    """
    if not isinstance(device, str):
        raise TypeError(f"Tensor.to: device must be str, not {type(device).__name__}")
    if device == "cpu":
        return None
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal() or device == "cuda:":
        raise TritonModelException(f"there is no device {device!r}: it is 'cpu', 'cuda' or 'cuda:N'")
    return int(number or 0)


def as_items(array: np.ndarray) -> List[bytes]:
    """The elements of a BYTES array in C order: ``bytes`` as they are, everything else as UTF-8 of its ``str`` (spec 1.3)."""
    items = array.reshape(-1).tolist()
    if set(map(type, items)) <= {bytes}:
        return items
    return [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in items]


def empty(name: str, shape: Sequence[int], dtype: Union[str, type, np.dtype]) -> Tensor:
    """An output tensor that already lies in shared memory: fill ``as_numpy()`` in place and return it, and nothing is copied.

    Not in Triton's own pb_utils.

    Args:
        name: the output's name in the model's configuration.
        shape: dimensions, each at least 0.
        dtype: a numpy dtype, or a name such as "FP32" or "TYPE_FP32". Not BYTES, whose size depends on its elements.

    Raises:
        TypeError: ``name`` is not a str, a dimension not an integer, or ``dtype`` not one of these.
        TritonModelException: empty name, negative dimension, BYTES, or a dtype that Triton does not have.
    """
    if not isinstance(name, str):
        raise TypeError(f"empty: name must be str, not {type(name).__name__}")
    if dtype is None:  # for numpy it means float64
        raise TypeError("empty: dtype must not be None")
    if not name:
        raise TritonModelException(_EMPTY_NAME)
    if isinstance(dtype, str) and dtype in BY_NAME:
        found: Optional[DataType] = BY_NAME[dtype]
    elif isinstance(dtype, str) and dtype in BY_CONFIG_NAME:
        found = BY_CONFIG_NAME[dtype]
    else:
        found = BY_NUMPY.get(np.dtype(dtype))
    if found is None:
        raise TritonModelException("NumPy dtype is not supported.")
    if found is BYTES:
        raise TritonModelException(f"Tensor '{name}': the size of a BYTES tensor depends on its elements; use Tensor(name, array).")
    shape = tuple(map(index, shape))  # numpy's integers do not travel
    if any(dim < 0 for dim in shape):
        raise TritonModelException(f"Tensor '{name}': dimensions must not be negative, got {list(shape)}.")
    nbytes = element_count(shape) * found.itemsize
    return Tensor._over(name, found, shape, host.allocate(nbytes), 0, nbytes)
