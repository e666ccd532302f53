"""An array of each data type, with the ends of its range, as both protocols carry them."""

from __future__ import annotations

from typing import Dict, Tuple

import numpy as np

ARRAYS: Dict[str, Tuple[str, np.ndarray]] = {
    "BOOL": ("BOOL", np.array([True, False])),
    "UINT8": ("UINT8", np.array([0, 255], np.uint8)),
    "UINT16": ("UINT16", np.array([0, 2**16 - 1], np.uint16)),
    "UINT32": ("UINT32", np.array([0, 2**32 - 1], np.uint32)),
    "UINT64": ("UINT64", np.array([0, 2**64 - 1], np.uint64)),
    "INT8": ("INT8", np.array([-128, 127], np.int8)),
    "INT16": ("INT16", np.array([-(2**15), 2**15 - 1], np.int16)),
    "INT32": ("INT32", np.array([-(2**31), 2**31 - 1], np.int32)),
    "INT64": ("INT64", np.array([-(2**63), 2**63 - 1], np.int64)),
    "FP32": ("FP32", np.array([0.1, -1e30], np.float32)),
    "FP64": ("FP64", np.array([0.1, -1e300], np.float64)),
    "FP32 not finite": ("FP32", np.array([np.nan, np.inf, -np.inf], np.float32)),
    "FP32 empty": ("FP32", np.array([], np.float32)),
    "BYTES": ("BYTES", np.array([b"a", "日本".encode(), b""], object)),
    "BYTES empty": ("BYTES", np.array([], object)),
}
