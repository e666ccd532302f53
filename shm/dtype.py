"""The fourteen tensor data types of the KServe v2 protocol, under each of their names.

Source: ``TRITONSERVER_DataType`` and the KServe v2 protocol ("Tensor Data Types"). The integer codes are Triton's, and are what
travels between processes.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

import numpy as np


class DataType(NamedTuple):
    """One data type. ``itemsize`` is in bytes, 0 for BYTES; ``numpy`` is None for BF16, which numpy does not have."""

    code: int
    name: str
    config_name: str
    numpy: Optional[np.dtype]
    itemsize: int


def _table() -> tuple[DataType, ...]:
    plain = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
    numpy_names = [n.lower().replace("fp", "float") for n in plain]
    rows = []
    for code, (name, numpy_name) in enumerate(zip(plain, numpy_names), start=1):
        dtype = np.dtype(numpy_name)
        rows.append(DataType(code, name, "TYPE_" + name, dtype, dtype.itemsize))
    rows.append(DataType(13, "BYTES", "TYPE_STRING", np.dtype(object), 0))
    rows.append(DataType(14, "BF16", "TYPE_BF16", None, 2))
    return tuple(rows)


DATA_TYPES = _table()
BY_CODE = {t.code: t for t in DATA_TYPES}
BY_NAME = {t.name: t for t in DATA_TYPES}
BY_CONFIG_NAME = {t.config_name: t for t in DATA_TYPES}
BY_NUMPY = {t.numpy: t for t in DATA_TYPES if t.numpy is not None}
BOOL, INT32, FP16, FP32, BYTES, BF16 = (BY_NAME[n] for n in ("BOOL", "INT32", "FP16", "FP32", "BYTES", "BF16"))

MAX_ELEMENTS = 2**63 - 1
MAX_RANK = 64
"""No array has more dimensions (numpy's NPY_MAXDIMS)."""


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of ``shape``; 1 for a scalar, and never an overflow (Python's integers have none)."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def has_elements(shape: Sequence[int], count: int) -> bool:
    """Whether a tensor of ``shape``, which anybody may have made up, has so many elements. The number of them, which may have as many digits
    as the shape, is never computed."""
    if 0 in shape:
        return count == 0
    product = 1
    for dim in shape:
        product *= dim
        if product > count:
            return False
    return product == count
