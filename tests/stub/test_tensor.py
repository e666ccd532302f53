"""``pb_utils.Tensor`` and ``pb_utils.empty``: spec 1.2 and 1.4, rule by rule."""

from __future__ import annotations

from typing import Any, List, Tuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from stublet.shm.bytes_codec import BytesError, encode
from stublet.shm.dtype import BF16, BY_NAME, BYTES
from stublet.stub.error import TritonModelException
from stublet.stub.tensor import Tensor, empty

NUMERIC = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def received(dtype: str, shape: Tuple[int, ...], data: bytes, offset: int = 0) -> Tensor:
    """An input, over its request's block."""
    block = np.frombuffer(bytearray(bytes(offset) + data), np.uint8)
    return Tensor._over("x", BY_NAME[dtype], shape, block, offset, len(data))


# ---- construction ----


@pytest.mark.parametrize("code, dtype", list(enumerate(NUMERIC, start=1)))
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_a_contiguous_array_is_referenced(code: int, dtype: str, shape: Tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    tensor = Tensor("x", array)
    assert (tensor.name(), tensor.shape(), tensor.triton_dtype(), tensor.is_cpu()) == ("x", list(shape), code, True)
    assert type(tensor.shape()) is list
    assert tensor.as_numpy() is array
    assert tensor._wire().tobytes() == array.tobytes() and tensor._nbytes == array.nbytes


@given(st_numpy.arrays(st.sampled_from(NUMERIC), st_numpy.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)), st.data())
def test_any_other_is_copied_and_says_the_same(array: np.ndarray, data: st.DataObject) -> None:
    view = array.transpose(data.draw(st.permutations(range(array.ndim))))[:: data.draw(st.sampled_from([1, 2, -1]))]
    tensor = Tensor("x", view)
    np.testing.assert_array_equal(tensor.as_numpy(), view)
    assert tensor.as_numpy().flags.c_contiguous
    assert tensor._wire().tobytes() == view.tobytes()
    assert (tensor.as_numpy() is view) == view.flags.c_contiguous


@pytest.mark.parametrize(
    "name, array",
    [(None, np.ones(1)), (5, np.ones(1)), (b"x", np.ones(1)), ("x", None), ("x", [1.0]), ("x", 1.0), ("", None), ("x", np.float32(1))],
)
def test_wrong_types_are_type_errors(name: Any, array: Any) -> None:
    with pytest.raises(TypeError, match=r"^Tensor: "):
        Tensor(name, array)


@pytest.mark.parametrize("missing", [(), ("x",)])
def test_both_arguments_are_needed(missing: Tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Tensor(*missing)  # type: ignore[call-arg]


def test_the_name_may_not_be_empty() -> None:
    with pytest.raises(TritonModelException, match=r"^Tensor name cannot be an empty string\.$"):
        Tensor("", np.ones(1))


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.array([1], "timedelta64[s]"),
        np.array([1j]),
        np.array([1j], np.complex64),
        np.array([1], np.longdouble),
        np.array([1], ml_dtypes.bfloat16),
        np.array([1], ml_dtypes.float8_e4m3fn),
        np.array([(1, 2)], "i4,i4"),
        np.array([1], ">i4"),
        np.array([b"ab"], "V2"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TritonModelException, match=r"^NumPy dtype is not supported\.$"):
        Tensor("x", array)


# ---- BYTES ----


@pytest.mark.parametrize(
    "array, items",
    [
        (np.array([b"a", b"", b"\0\xff"], object), [b"a", b"", b"\0\xff"]),
        (np.array([["a", "ü"], [b"b", 5]], object), [b"a", "ü".encode(), b"b", b"5"]),
        (np.array([None, 1.5, np.bytes_(b"n")], object), [b"None", b"1.5", b"n"]),
        (np.array([b"ab", b"c\0"]), [b"ab", b"c"]),  # numpy drops trailing zeros of fixed-width bytes
        (np.array([[b"a", b"b"], [b"c", b"d"]]).T, [b"a", b"c", b"b", b"d"]),
        (np.array(b"scalar", object), [b"scalar"]),
        (np.empty((0, 2), object), []),
    ],
)
def test_strings_are_serialised_at_once(array: np.ndarray, items: List[bytes]) -> None:
    tensor = Tensor("x", array)
    assert (tensor.triton_dtype(), tensor.shape()) == (13, list(array.shape))
    assert tensor._wire().tobytes() == encode(items)
    if array.size:
        array[...] = b"changed"
    found = tensor.as_numpy()
    assert found.dtype == object and found.shape == array.shape
    assert found.reshape(-1).tolist() == items and all(type(item) is bytes for item in found.reshape(-1))
    assert tensor.as_numpy() is found


def test_a_string_input_is_parsed_when_it_is_asked_for() -> None:
    tensor = received("BYTES", (2, 2), encode([b"a", b"", b"ccc", b"\xff"]), offset=64)
    assert tensor.as_numpy().tolist() == [[b"a", b""], [b"ccc", b"\xff"]]
    assert tensor.triton_dtype() == BYTES.code


def test_a_string_input_that_is_cut_or_of_another_number_is_a_value_error() -> None:
    with pytest.raises(BytesError, match=r"^Invalid bytes tensor data: string extends beyond buffer$"):
        received("BYTES", (1,), b"\5\0\0\0ab").as_numpy()
    with pytest.raises(ValueError, match="reshape"):
        received("BYTES", (3,), encode([b"a", b"b"])).as_numpy()


# ---- inputs ----


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0)])
def test_an_input_is_a_writable_view_of_its_block(dtype: str, shape: Tuple[int, ...]) -> None:
    values = np.ones(shape, dtype)
    tensor = received(dtype.upper().replace("FLOAT", "FP"), shape, values.tobytes(), offset=64)
    array = tensor.as_numpy()
    assert array.dtype == dtype and array.shape == shape and array.flags.writeable and array.flags.c_contiguous
    np.testing.assert_array_equal(array, values)
    assert tensor.as_numpy() is array
    if array.size:
        assert np.shares_memory(array, tensor._data)
        array[...] = 0
        assert not tensor._wire().any()


def test_an_array_outlives_its_tensor() -> None:
    array = received("INT32", (2,), b"\1\0\0\0\2\0\0\0").as_numpy()
    assert array.tolist() == [1, 2]


def test_bf16_is_not_for_numpy() -> None:
    tensor = Tensor._over("x", BF16, (2,), np.zeros(4, np.uint8), 0, 4)
    assert tensor.triton_dtype() == 14
    with pytest.raises(TritonModelException) as raised:
        tensor.as_numpy()
    assert str(raised.value) == ("Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead.")


def test_repr() -> None:
    assert repr(Tensor("x", np.ones((2, 3), np.float32))) == "Tensor('x', FP32, [2, 3])"


# ---- empty ----


@pytest.mark.parametrize("dtype", ["FP32", "TYPE_FP32", "float32", np.float32, np.dtype(np.float32), "<f4"])
@pytest.mark.parametrize("shape", [(2, 3), [4], (), (0, 5)])
def test_empty_is_a_tensor_to_fill(dtype: Any, shape: Any) -> None:
    tensor = empty("x", shape, dtype)
    assert (tensor.name(), tensor.shape(), tensor.triton_dtype()) == ("x", list(shape), 11)
    tensor.as_numpy()[...] = 7
    assert tensor._wire().view(np.float32).tolist() == [7.0] * tensor.as_numpy().size


def test_empty_bf16_is_for_dlpack() -> None:
    tensor = empty("x", (2, 2), "BF16")
    assert (tensor.triton_dtype(), tensor._nbytes) == (14, 8)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("", (1,), "FP32"), "Tensor name cannot be an empty string."),
        (("x", (1,), np.complex64), "NumPy dtype is not supported."),
        (("x", (2, -1), "FP32"), "Tensor 'x': dimensions must not be negative, got [2, -1]."),
        (("x", (2,), "BYTES"), "Tensor 'x': the size of a BYTES tensor depends on its elements; use Tensor(name, array)."),
        (("x", (2,), object), "Tensor 'x': the size of a BYTES tensor depends on its elements; use Tensor(name, array)."),
        (("x", (2,), "TYPE_STRING"), "Tensor 'x': the size of a BYTES tensor depends on its elements; use Tensor(name, array)."),
    ],
)
def test_empty_refuses(arguments: Tuple[Any, ...], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        empty(*arguments)
    assert str(raised.value) == text


@pytest.mark.parametrize("arguments", [(None, (1,), "FP32"), ("x", (1,), "no such type"), ("x", 5, "FP32"), ("x", ("a",), "FP32")])
def test_empty_refuses_wrong_types(arguments: Tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        empty(*arguments)
