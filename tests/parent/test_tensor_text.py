"""Tensors as a user writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.cli.tensor_text import TensorError, from_json, from_wire, nested, read, save, show, to_json, to_wire
from stublet.shm.dtype import BF16, BY_NAME, BYTES, DATA_TYPES, DataType


@pytest.mark.parametrize(
    "given_, dtype, expected, shape",
    [
        ("[1, 2.5]", "FP32", [1, 2.5], [2]),
        ("[[1, 2], [3, 4]]", "INT8", [1, 2, 3, 4], [2, 2]),
        ("[1.0, 2]", "INT64", [1, 2], [2]),
        ("[true, false]", "BOOL", [True, False], [2]),
        ('["a", "é"]', "BYTES", [b"a", "é".encode()], [2]),
        ("[[]]", "BYTES", [], [1, 0]),
        ("[]", "UINT8", [], [0]),
        ("5", "INT32", [5], [1, 1]),
        ('"text"', "BYTES", [b"text"], [1, 1]),
        ("[1.5, -2]", "BF16", [1.5, -2], [2]),
        ("[65504]", "FP16", [65504], [1]),
        ("[18446744073709551615]", "UINT64", [2**64 - 1], [1]),
    ],
)
def test_json(given_: str, dtype: str, expected: List[Any], shape: List[int]) -> None:
    array = read("X", given_, BY_NAME[dtype], 2)
    assert array.reshape(-1).tolist() == expected and list(array.shape) == shape


@pytest.mark.parametrize(
    "given_, dtype, complaint",
    [
        ("[1, 2", "FP32", r"input 'X': \[1, 2 cannot be read: Expecting ',' delimiter"),
        ("[[1], [2, 3]]", "FP32", r"input 'X': \[\[1\], \[2, 3\]\] cannot be read: setting an array element with a sequence"),
        ('[1, "a"]', "FP32", "it is not an array of numbers, of truth values or of strings"),
        ("[null]", "FP32", "it is not an array of numbers, of truth values or of strings"),
        ('{"a": 1}', "BYTES", "it is not an array of numbers, of truth values or of strings"),
        ("[1.5]", "INT32", "input 'X' wants INT32, and 1.5 is none"),
        ("[300]", "UINT8", "input 'X' wants UINT8, and 300 is none"),
        ("[-1]", "UINT64", "input 'X' wants UINT64, and -1 is none"),
        ("[NaN]", "INT32", "input 'X' wants INT32, and nan is none"),
        ("[1e300]", "INT64", r"input 'X' wants INT64, and 1e\+300 is none"),
        ('["1"]', "INT32", "input 'X' wants INT32, not strings"),
        ("[1]", "BOOL", "input 'X' wants BOOL, not int64"),
        ("[true]", "INT32", "input 'X' wants INT32, not bool"),
        ("[1]", "BYTES", "input 'X' wants BYTES, not int64"),
        ("/no/such.npy", "FP32", "input 'X': /no/such.npy: No such file or directory"),
        ("@/no/such.json", "FP32", "input 'X': /no/such.json: No such file or directory"),
    ],
)
def test_what_is_no_tensor(given_: str, dtype: str, complaint: str) -> None:
    with pytest.raises(TensorError, match=complaint):
        read("X", given_, BY_NAME[dtype], 1)


def test_files(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "a.json").write_text(json.dumps(array.tolist()))
    for text in (str(tmp_path / "a.npy"), f"@{tmp_path / 'a.json'}"):
        found = read("X", text, BY_NAME["FP32"], 2)
        assert found.dtype == np.float32 and np.array_equal(found, array)
    with pytest.raises(TensorError, match=r"it is neither JSON nor an \.npy file \(for a file with JSON, write @.*a\.json\)"):
        read("X", str(tmp_path / "a.json"), BY_NAME["FP32"], 2)
    (tmp_path / "bad.npy").write_bytes(b"nonsense")
    with pytest.raises(TensorError, match="cannot be read"):
        read("X", str(tmp_path / "bad.npy"), BY_NAME["FP32"], 2)


def test_a_file_of_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(TensorError, match="cannot be read"):
        read("X", str(tmp_path / "a.npy"), BYTES, 1)


ELEMENTS = {"b": st.booleans(), "u": st.integers(0, 255), "i": st.integers(-128, 127), "f": st.floats(width=16, allow_nan=False)}


@given(dtype=st.sampled_from(DATA_TYPES), data=st.data())
def test_there_and_back(dtype: DataType, data: st.DataObject) -> None:
    if dtype is BYTES:
        items: List[Any] = data.draw(st.lists(st.binary(max_size=5)))
        array = np.empty(len(items), object)
        array[:] = items
    elif dtype is BF16:
        array = np.array(data.draw(st.lists(st.integers(-128, 127))), np.float32)
    else:
        assert dtype.numpy is not None
        array = np.array(data.draw(st.lists(ELEMENTS[dtype.numpy.kind])), dtype.numpy)
    back = from_wire(to_wire(array, dtype), dtype, array.shape)
    assert np.array_equal(back, array) and back.dtype == array.dtype
    if dtype is not BYTES or all(item.isascii() for item in array):
        assert np.array_equal(from_json(json.loads(json.dumps(to_json(array, dtype))), dtype, array.shape), array)


def test_bytes_that_are_no_tensor() -> None:
    for data, dtype, shape in ((b"abc", "FP32", [1]), (b"\5\0\0\0a", "BYTES", [1]), (b"", "INT8", [1])):
        with pytest.raises(TensorError, match=rf"^{len(data)} bytes are no {dtype} tensor of shape \[1\]: "):
            from_wire(data, BY_NAME[dtype], shape)


def test_saving(tmp_path: Path) -> None:
    array = np.array([[1, 2]], np.int16)
    save(array, str(tmp_path / "a.npy"))
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    save(array, str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text()) == [[1, 2]]
    strings = np.array([b"a", b"bcd"], object)
    save(strings, str(tmp_path / "s.npy"))
    assert np.load(tmp_path / "s.npy").tolist() == [b"a", b"bcd"]
    save(np.array([b"\xff"], object), str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text()) == ["\\xff"]
    with pytest.raises(TensorError, match=r"strings that end with zero bytes cannot be in an \.npy file"):
        save(np.array([b"a\0"], object), str(tmp_path / "s.npy"))
    with pytest.raises(TensorError, match=r"^/no/such/a\.npy: No such file or directory$"):
        save(array, "/no/such/a.npy")


def test_showing() -> None:
    assert show(np.array([1.5, 2], np.float32)) == "[1.5, 2. ]"
    assert show(np.array([[b"a", b'"']], object)) == '[["a", "\\""]]'
    assert "... (500 bytes)" in show(np.array([b"x" * 500], object))
    assert len(show(np.zeros((100, 100, 100)))) < 2000
    assert nested(np.array([[b"a"]], object)) == [["a"]]
