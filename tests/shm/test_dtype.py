"""The table of data types against the specification's (1.2)."""

from __future__ import annotations

import numpy as np
import pytest
from stublet.shm.dtype import BY_CODE, BY_CONFIG_NAME, BY_NAME, BY_NUMPY, DATA_TYPES, element_count, has_elements

TABLE = [
    (1, "TYPE_BOOL", "BOOL", np.bool_, 1),
    (2, "TYPE_UINT8", "UINT8", np.uint8, 1),
    (3, "TYPE_UINT16", "UINT16", np.uint16, 2),
    (4, "TYPE_UINT32", "UINT32", np.uint32, 4),
    (5, "TYPE_UINT64", "UINT64", np.uint64, 8),
    (6, "TYPE_INT8", "INT8", np.int8, 1),
    (7, "TYPE_INT16", "INT16", np.int16, 2),
    (8, "TYPE_INT32", "INT32", np.int32, 4),
    (9, "TYPE_INT64", "INT64", np.int64, 8),
    (10, "TYPE_FP16", "FP16", np.float16, 2),
    (11, "TYPE_FP32", "FP32", np.float32, 4),
    (12, "TYPE_FP64", "FP64", np.float64, 8),
    (13, "TYPE_STRING", "BYTES", np.object_, 0),
    (14, "TYPE_BF16", "BF16", None, 2),
]


@pytest.mark.parametrize("code, config_name, name, numpy_type, itemsize", TABLE)
def test_a_data_type_has_these_names(code: int, config_name: str, name: str, numpy_type: type, itemsize: int) -> None:
    found = BY_CODE[code]
    assert found is BY_NAME[name] is BY_CONFIG_NAME[config_name]
    assert (found.name, found.config_name, found.itemsize) == (name, config_name, itemsize)
    if numpy_type is None:
        assert found.numpy is None and found not in BY_NUMPY.values()
    else:
        assert BY_NUMPY[np.dtype(numpy_type)] is found


def test_there_are_no_others() -> None:
    assert [t.code for t in DATA_TYPES] == [row[0] for row in TABLE]


@pytest.mark.parametrize("alias, name", [("longlong", "INT64"), ("ulonglong", "UINT64"), ("intc", "INT32"), ("?", "BOOL")])
def test_an_alias_is_the_same_type(alias: str, name: str) -> None:
    assert BY_NUMPY[np.dtype(alias)] is BY_NAME[name]


def test_bytes_of_the_other_order_are_another_type() -> None:
    assert np.dtype(">i4") not in BY_NUMPY


@pytest.mark.parametrize("shape, count", [((), 1), ((0,), 0), ((3,), 3), ((2, 3, 4), 24), ((2**40, 0), 0), ((2**40, 2**40), 2**80)])
def test_element_count(shape: tuple[int, ...], count: int) -> None:
    assert element_count(shape) == count
    assert has_elements(shape, count) and not has_elements(shape, count + 1)


def test_elements_of_shapes_that_somebody_made_up() -> None:
    assert not has_elements((2**63 - 1,) * 100_000, 5)
    assert has_elements(((2**63 - 1),) * 100_000 + (0,), 0)
