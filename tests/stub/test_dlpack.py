"""DLPack in and out, against capsules made by hand and against numpy's."""

from __future__ import annotations

import datetime
import sys
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

import ml_dtypes
import numpy as np
import pytest
from capsule import BFLOAT, BOOL, COMPLEX, CPU, CUDA, CUDA_HOST, FLOAT, INT, LEGACY, METAL, UINT, VERSIONED, Producer, contents, name_of
from stublet.shm.dtype import BF16
from stublet.stub.error import TritonModelException
from stublet.stub.tensor import Tensor

NUMPY_IS_VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
NEWEST = VERSIONED if NUMPY_IS_VERSIONED else LEGACY
needs_versioned_numpy = pytest.mark.skipif(not NUMPY_IS_VERSIONED, reason="numpy before 2.1 knows legacy capsules only")

NOT_CONTIGUOUS = "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."

DTYPES: List[Tuple[str, Tuple[int, int]]] = [
    ("bool", (BOOL, 8)),
    *((f"uint{bits}", (UINT, bits)) for bits in (8, 16, 32, 64)),
    *((f"int{bits}", (INT, bits)) for bits in (8, 16, 32, 64)),
    *((f"float{bits}", (FLOAT, bits)) for bits in (16, 32, 64)),
]
SHAPES = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)]


def bf16(values: Any) -> Tensor:
    """A BF16 tensor of these values."""
    data = np.array(values, ml_dtypes.bfloat16)
    return Tensor._over("bf16", BF16, data.shape, data.reshape(-1).view(np.uint8), 0, data.nbytes)


class Holding:
    """An object that offers exactly what is given."""

    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


# ---- out ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, code", DTYPES)
def test_a_capsule_describes_the_tensor(dtype: str, code: Tuple[int, int], shape: Tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    tensor = Tensor("x", array)
    legacy = tensor.to_dlpack()
    assert name_of(legacy) == name_of(tensor.__dlpack__()) == LEGACY
    versioned = tensor.__dlpack__(max_version=(1, 5))
    assert name_of(versioned) == NEWEST
    for capsule in (legacy, versioned):
        found = contents(capsule)
        assert (found.device, found.dtype, found.shape, found.strides, found.byte_offset) == ((CPU, 0), (*code, 1), list(shape), None, 0)
        assert found.address == (array.ctypes.data if array.size else None), "no copy"
    assert (contents(versioned).version, contents(versioned).flags) == (((1, 0), 0) if NUMPY_IS_VERSIONED else (None, None))
    assert tensor.__dlpack_device__() == (CPU, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
def test_numpy_takes_a_tensor_without_a_copy(dtype: str, shape: Tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    taken = np.from_dlpack(Tensor("x", array))
    assert taken.dtype == array.dtype and taken.shape == shape
    np.testing.assert_array_equal(taken, array)
    assert not array.size or np.shares_memory(taken, array)


def test_bf16_goes_out_as_bfloat() -> None:
    tensor = bf16([[1.5, -2.0, 0.25]])
    found = contents(tensor.to_dlpack())
    assert (found.dtype, found.shape, found.strides) == ((BFLOAT, 16, 1), [1, 3], None)
    back = Tensor.from_dlpack("y", tensor)
    assert (back.triton_dtype(), back.shape()) == (14, [1, 3])
    np.testing.assert_array_equal(back._wire().view(ml_dtypes.bfloat16), [1.5, -2.0, 0.25])


def test_strings_do_not_go_out() -> None:
    tensor = Tensor("x", np.array([b"a"], object))
    for export in (tensor.to_dlpack, tensor.__dlpack__, lambda: Tensor.from_dlpack("y", tensor)):
        with pytest.raises(TritonModelException, match=r"^DLPack does not have support for string tensors\.$"):
            export()


@pytest.mark.parametrize("export", [Tensor.to_dlpack, Tensor.__dlpack__, lambda t: t.__dlpack__(max_version=(1, 0))])
def test_a_capsule_holds_exactly_one_reference(export: Callable[[Tensor], Any]) -> None:
    tensor = Tensor("x", np.arange(6.0))
    before = sys.getrefcount(tensor)
    capsule = export(tensor)
    assert sys.getrefcount(tensor) == before + 1
    second = export(tensor)
    assert sys.getrefcount(tensor) == before + 2
    del capsule, second
    assert sys.getrefcount(tensor) == before, "a capsule that nobody consumed"


def test_a_consumer_holds_the_reference_until_its_last_view_is_gone() -> None:
    tensor = Tensor("x", np.arange(6.0))
    before = sys.getrefcount(tensor)
    taken = np.from_dlpack(tensor)
    assert sys.getrefcount(tensor) == before + 1
    part = taken[2:]
    del taken
    assert sys.getrefcount(tensor) == before + 1
    del part
    assert sys.getrefcount(tensor) == before


def test_an_unused_capsule_may_die_while_an_exception_propagates() -> None:
    tensor = Tensor("x", np.arange(6.0))
    before = sys.getrefcount(tensor)
    for export in (tensor.to_dlpack, lambda: tensor.__dlpack__(max_version=(1, 0))):
        with pytest.raises(ZeroDivisionError) as raised:
            [export(), 1 / 0]
        assert raised.value.__context__ is None
    assert sys.getrefcount(tensor) == before


def test_a_consumer_may_let_go_in_another_thread() -> None:
    tensor = Tensor("x", np.arange(6.0))
    before = sys.getrefcount(tensor)
    held = [np.from_dlpack(tensor), tensor.to_dlpack()]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert sys.getrefcount(tensor) == before


@pytest.mark.parametrize("arguments", [(None,), (1,)])
def test_the_stream_is_accepted_and_ignored(arguments: Tuple[Any, ...]) -> None:
    tensor = Tensor("x", np.arange(3))
    assert name_of(tensor.__dlpack__(*arguments)) == name_of(tensor.__dlpack__(stream=arguments[0])) == LEGACY


@pytest.mark.parametrize("max_version, name", [(None, LEGACY), ((0, 8), LEGACY), ((1, 0), NEWEST), ((2, 0), NEWEST)])
def test_the_version_is_the_highest_that_both_know(max_version: Optional[Tuple[int, int]], name: bytes) -> None:
    capsule = Tensor("x", np.arange(3)).__dlpack__(max_version=max_version)
    assert name_of(capsule) == name
    assert contents(capsule).version in (None, (1, 0))


@needs_versioned_numpy
def test_a_copy_is_a_copy() -> None:
    array = np.arange(4)
    tensor = Tensor("x", array)
    copied = np.from_dlpack(tensor, copy=True)
    copied[:] = 0
    assert array.tolist() == [0, 1, 2, 3]
    assert np.shares_memory(np.from_dlpack(tensor, copy=False), array)


def test_another_device_is_refused() -> None:
    tensor = Tensor("x", np.arange(3))
    assert tensor.__dlpack__(dl_device=(CPU, 0)) is not None
    with pytest.raises(BufferError, match=r"the tensor 'x' is in CPU memory and cannot be exported to device \(2, 0\)"):
        tensor.__dlpack__(dl_device=(CUDA, 0))


@needs_versioned_numpy
def test_a_read_only_tensor_goes_out_read_only() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    capsule = Tensor("x", array).__dlpack__(max_version=(1, 0))
    assert contents(capsule).flags == 1
    assert not np.from_dlpack(Tensor("x", array)).flags.writeable


# ---- in ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
def test_a_numpy_array_comes_in_without_a_copy(dtype: str, shape: Tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    newest = {"max_version": (1, 0)} if NUMPY_IS_VERSIONED else {}
    for source in (array, array.__dlpack__(), array.__dlpack__(**newest)):
        tensor = Tensor.from_dlpack("x", source)
        assert (tensor.name(), tensor.shape(), tensor.is_cpu()) == ("x", list(shape), True)
        taken = tensor.as_numpy()
        assert taken.dtype == array.dtype and taken.shape == shape
        np.testing.assert_array_equal(taken, array)
        assert not array.size or np.shares_memory(taken, array)


@pytest.mark.parametrize("name", [LEGACY, VERSIONED])
@pytest.mark.parametrize("dtype, code", DTYPES)
def test_every_type_has_its_number(name: bytes, dtype: str, code: Tuple[int, int]) -> None:
    values = np.array([0, 1, 1], dtype)
    producer = Producer(values.tobytes(), [3], dtype=(*code, 1), name=name)
    np.testing.assert_array_equal(Tensor.from_dlpack("x", producer).as_numpy(), values)


@pytest.mark.parametrize("name", [LEGACY, VERSIONED])
@pytest.mark.parametrize("data, shape", [(b"abcdef", [2, 3]), (b"a", []), (b"", [2, 0])])
@pytest.mark.parametrize("by_capsule", [False, True])
def test_the_deleter_is_called_once_when_the_last_view_is_gone(name: bytes, data: bytes, shape: List[int], by_capsule: bool) -> None:
    producer = Producer(data, shape, name=name)
    tensor = Tensor.from_dlpack("x", producer.capsule if by_capsule else producer)
    assert name_of(producer.capsule) == {LEGACY: b"used_dltensor", VERSIONED: b"used_dltensor_versioned"}[name]
    array = tensor.as_numpy()
    assert (array.tobytes(), tensor.shape(), tensor.triton_dtype()) == (data, shape, 2)
    part, capsule = array[...], tensor.to_dlpack()
    assert producer.deleted == ([] if data else [producer.address]), "an empty tensor has nothing to keep"
    del tensor, array
    del part
    assert len(producer.deleted) == (0 if data else 1)
    del capsule
    assert producer.deleted == [producer.address]


@pytest.mark.parametrize("data", [b"ab", b""])
def test_a_producer_may_have_no_deleter(data: bytes) -> None:
    assert Tensor.from_dlpack("x", Producer(data, [len(data)], has_deleter=False)).as_numpy().tobytes() == data


def test_the_byte_offset_is_honoured() -> None:
    producer = Producer(b"0123456789", [2, 2], byte_offset=3)
    assert Tensor.from_dlpack("x", producer).as_numpy().tolist() == [[ord("3"), ord("4")], [ord("5"), ord("6")]]


@pytest.mark.parametrize(
    "shape, strides",
    [([4], [1]), ([2, 3], [3, 1]), ([1, 3], [99, 1]), ([3, 1], [1, 77]), ([], []), ([1], [0]), ([0, 2], [5, 5]), ([2, 1, 2], [2, 9, 1])],
)
def test_dense_strides_are_fine_and_those_of_single_elements_do_not_matter(shape: List[int], strides: List[int]) -> None:
    data = bytes(range(int(np.prod(shape))))
    assert Tensor.from_dlpack("x", Producer(data, shape, strides=strides)).as_numpy().tobytes() == data


@pytest.mark.parametrize(
    "shape, strides", [([2], [2]), ([2], [-1]), ([2], [0]), ([2, 2], [1, 2]), ([2, 2], [4, 1]), ([2, 2], [4, 2]), ([2, 1, 2], [1, 1, 1])]
)
def test_other_strides_are_refused_and_the_capsule_stays_unused(shape: List[int], strides: List[int]) -> None:
    producer = Producer(bytes(100), shape, strides=strides)
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("x", producer)
    assert str(raised.value) == NOT_CONTIGUOUS
    assert name_of(producer.capsule) == LEGACY and not producer.deleted


@pytest.mark.parametrize("array", [np.arange(6)[::2], np.arange(6)[::-1], np.arange(6).reshape(2, 3).T, np.arange(8).reshape(2, 4)[:, :2]])
def test_strided_arrays_of_numpy_are_refused(array: np.ndarray) -> None:
    before = sys.getrefcount(array)
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("x", array)
    assert str(raised.value) == NOT_CONTIGUOUS
    del raised
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"device": (CUDA, 0)}, "DLPack capsule passed pointer to memory allocated on GPU device, when GPU is not available"),
        ({"device": (METAL, 0)}, "DLDevice type 8 is not support by Python backend."),
        ({"dtype": (BFLOAT, 32, 1)}, "Expected BF16 tensor to have 16 bits, but had: 32"),
        ({"dtype": (FLOAT, 32, 4)}, "Dtype is invalid."),
        ({"dtype": (FLOAT, 8, 1)}, "Dtype is invalid."),
        ({"dtype": (COMPLEX, 64, 1)}, "Dtype is invalid."),
        ({"dtype": (99, 8, 1)}, "Dtype is invalid."),
        ({"dtype": (BOOL, 1, 1)}, "Dtype is invalid."),
        ({"name": VERSIONED, "version": (2, 3)}, "DLPack version 2.3 is not supported; version 1 is."),
    ],
)
@pytest.mark.parametrize("by_capsule", [False, True])
def test_what_triton_does_not_have_is_refused(changes: Dict[str, Any], text: str, by_capsule: bool) -> None:
    producer = Producer(bytes(64), [2], **changes)
    before = name_of(producer.capsule)
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("x", producer.capsule if by_capsule else producer)
    assert str(raised.value) == text
    assert name_of(producer.capsule) == before and not producer.deleted


def test_pinned_memory_is_cpu_memory() -> None:
    tensor = Tensor.from_dlpack("x", Producer(b"ab", [2], device=(CUDA_HOST, 0)))
    assert tensor.as_numpy().tobytes() == b"ab" and tensor.__dlpack_device__() == (CPU, 0)


def test_a_capsule_is_consumed_once() -> None:
    capsule = np.arange(3).__dlpack__()
    Tensor.from_dlpack("x", capsule)
    with pytest.raises(TritonModelException, match=r"^The DLPack capsule was consumed before, or is not a DLPack capsule\.$"):
        Tensor.from_dlpack("x", capsule)
    with pytest.raises(TritonModelException, match="is not a DLPack capsule"):
        Tensor.from_dlpack("x", datetime.datetime_CAPI)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "obj",
    [None, 5, "text", Holding(__dlpack__=lambda: None), Holding(__dlpack_device__=lambda: (1, 0))],
    ids=lambda obj: type(obj).__name__,
)
def test_an_object_without_the_protocol_is_refused(obj: Any) -> None:
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("x", obj)
    assert str(raised.value) == (
        "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and `__dlpack_device__` attributes"
    )


@pytest.mark.parametrize("obj", [None, np.arange(3)])
def test_the_name_is_looked_at_first(obj: Any) -> None:
    with pytest.raises(TritonModelException, match=r"^Tensor name cannot be an empty string\.$"):
        Tensor.from_dlpack("", obj)
    with pytest.raises(TypeError, match="name must be str, not NoneType"):
        Tensor.from_dlpack(None, obj)  # type: ignore[arg-type]


def test_a_producer_from_before_dlpack_1_is_asked_again_without_a_version() -> None:
    producer = Producer(b"ab", [2])
    old = Holding(__dlpack__=lambda stream=None: producer.capsule, __dlpack_device__=producer.__dlpack_device__)
    assert Tensor.from_dlpack("x", old).as_numpy().tobytes() == b"ab"


@needs_versioned_numpy
def test_a_read_only_producer_stays_read_only() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    taken = Tensor.from_dlpack("x", array).as_numpy()
    assert np.shares_memory(taken, array) and not taken.flags.writeable
    assert Tensor.from_dlpack("x", Producer(b"ab", [2], name=VERSIONED, flags=0)).as_numpy().flags.writeable


def test_a_tensor_comes_in_as_any_producer_does() -> None:
    source = Tensor("x", np.array([True, False]))
    before = sys.getrefcount(source)
    taken = Tensor.from_dlpack("y", source)
    assert (taken.name(), taken.triton_dtype(), taken.as_numpy().tolist()) == ("y", 1, [True, False])
    assert sys.getrefcount(source) == before + 1
    assert np.shares_memory(taken.as_numpy(), source.as_numpy())
    del taken
    assert sys.getrefcount(source) == before
