"""The best elements of an output, against a sort of all of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stublet.parent.classification import classify, read_labels
from stublet.parent.errors import InvalidArgument
from stublet.parent.model_config import parse
from stublet.shm import bytes_codec
from stublet.shm.dtype import BF16, BOOL, BY_NAME, BY_NUMPY, BYTES, FP16, DataType


def classes(array: np.ndarray, count: int, batching: bool = False, labels: Sequence[bytes] = ()) -> Tuple[List[str], Tuple[int, ...]]:
    wire, shape = classify(array.tobytes(), BY_NUMPY[array.dtype], array.shape, batching, count, labels)
    return [text.decode() for text in bytes_codec.decode(wire)], shape


@pytest.mark.parametrize(
    "dtype, values, count, expected",
    [
        ("float32", [1, -2.5, 1e20, 0.1], 9, ["100000002004087734272.000000:2", "1.000000:0", "0.100000:3", "-2.500000:1"]),
        ("float64", [0.1, 1 / 3], 1, ["0.333333:1"]),
        ("float32", [math.nan, 1, math.inf, -math.inf], 3, ["inf:2", "1.000000:1", "nan:0"]),
        ("int8", [-128, 127, 0], 2, ["127:1", "0:2"]),
        ("uint64", [2**64 - 1, 0, 2**63], 2, [f"{2**64 - 1}:0", f"{2**63}:2"]),
        ("int32", [5, 7, 7, 5, 7], 4, ["7:1", "7:2", "7:4", "5:0"]),
        ("int32", [], 3, []),
    ],
)
def test_values(dtype: str, values: List[Any], count: int, expected: List[str]) -> None:
    assert classes(np.array(values, dtype), count) == (expected, (len(expected),))


def test_every_item_of_a_batch_has_its_own() -> None:
    array = np.array([[[1, 2], [3, 4]], [[8, 7], [6, 5]]], np.float32)
    assert classes(array, 2, batching=True) == (["4.000000:3", "3.000000:2", "8.000000:0", "7.000000:1"], (2, 2))
    assert classes(array, 2) == (["8.000000:4", "7.000000:5"], (2,))
    assert classes(array[:0], 2, batching=True) == ([], (0, 2))


def test_labels() -> None:
    array = np.array([1, 4, 3, 2], np.int32)
    assert classes(array, 4, labels=[b"a", b"b", b""])[0] == ["4:1:b", "3:2", "2:3", "1:0:a"]


@pytest.mark.parametrize("dtype", [FP16, BF16, BOOL, BYTES], ids=lambda dtype: dtype.name)
def test_types_without_order(dtype: DataType) -> None:
    with pytest.raises(InvalidArgument, match=f"^class result not available for output due to unsupported type '{dtype.name}'$"):
        classify(b"", dtype, (0,), False, 1, ())


def test_too_many_elements() -> None:
    array = np.zeros((2, 1_000_000), np.uint8)
    assert classes(array, 1, batching=True) == (["0:0", "0:0"], (2, 1))
    with pytest.raises(InvalidArgument, match=r"^classification output tensor too large$"):
        classify(bytes(4_000_004), BY_NAME["FP32"], (1_000_001,), False, 1, ())


@given(arrays.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False)), st.integers(1, 70))
def test_as_a_sort_has_it(array: np.ndarray, count: int) -> None:
    order = sorted(range(array.size), key=lambda i: (-array[i], i))[:count]
    assert classes(array, count)[0] == ["%f:%d" % (array[i], i) for i in order]


def test_labels_are_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("cat\nd\xf8g\r\n\nlast".encode())
    config = parse('output { name: "A" data_type: TYPE_FP32 dims: [1] label_filename: "labels.txt" } output { name: "B" }', "m")
    assert read_labels(str(tmp_path), config) == {"A": [b"cat", "døg".encode(), b"", b"last"]}
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(FileNotFoundError):
        read_labels(str(tmp_path), config)
