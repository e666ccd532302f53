"""Requests to ``add_sub`` over HTTP, and what it answers."""

from __future__ import annotations

import struct

from http_wire import tensor

WAYS = {"direct": {}, "asgi": {"accept-encoding": "identity"}}
"""Headers that choose one of the two ways of an inference through the server."""

FOUR = [1.0, 2.0, 3.0, 4.0]
FLOATS = struct.pack("<4f", *FOUR)
GOOD = {"inputs": [tensor("INPUT0", "FP32", [4], FOUR), tensor("INPUT1", "FP32", [4], FOUR)]}
SUM = {"name": "OUTPUT0", "datatype": "FP32", "shape": [4], "data": [2.0, 4.0, 6.0, 8.0]}
DIFFERENCE = {"name": "OUTPUT1", "datatype": "FP32", "shape": [4], "data": [0.0, 0.0, 0.0, 0.0]}
ANSWER = {"model_name": "add_sub", "model_version": "1", "outputs": [SUM, DIFFERENCE]}
SUM_BYTES, DIFFERENCE_BYTES = struct.pack("<4f", 2, 4, 6, 8), bytes(16)

BLOB0, BLOB1 = tensor("INPUT0", "FP32", [4], binary_data_size=16), tensor("INPUT1", "FP32", [4], binary_data_size=16)
