"""Requests with tensors in shared memory of a client's, as a stub gets them, and what it does with them."""

from __future__ import annotations

import itertools
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np
from stub_runtime import Runtime
from stublet.shm.dtype import BY_NAME
from stublet.shm.message import FAILURE, FINAL, RETURNED, ErrorCode
from stublet.stub.memory import REFERENCE_BYTES
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

Row = Tuple[Any, ...]

SIZE = 1 << 20
START = 4096 + 8
"""Where the region begins in the file."""

REGION = 7
FP32 = BY_NAME["FP32"]
LARGE = np.arange(REFERENCE_BYTES, dtype=np.float32)
SMALL = np.arange(4, dtype=np.float32)
LOST = "shared memory region 'mine' no longer has the bytes of {}: it was truncated after it was registered, or its file system is full"

_keys = itertools.count()


def request(*reads: Row, writes: Sequence[Row] = (), dtype: Any = FP32, extras: Row = ()) -> Row:
    """A request with an input in each of these places, each (offset, shape, nbytes), and outputs to go to (index, offset, room)."""
    inputs = [(index, dtype.code, shape, 1 + index, 0, nbytes) for index, (_, shape, nbytes) in enumerate(reads)]
    places = tuple((REGION, offset, nbytes) for offset, _, nbytes in reads)
    targets = tuple((index, REGION, offset, room) for index, offset, room in writes)
    return next(_keys), 0, ((100, 0, 64),), tuple(inputs), extras, (places, targets)


def at(array: np.ndarray, offset: int = 0) -> Row:
    """A place where that array is."""
    return offset, array.shape, array.nbytes


def execute(runtime: Runtime, function: Callable[[List[InferenceRequest]], Any], *batch: Row) -> List[Row]:
    """What a stub does with a batch; the results that come of it."""
    holder, execution = runtime.executions.begin(batch)
    if holder[0]:
        execution.returned([function(holder.pop())])
    return runtime.results()


def echo(requests: List[InferenceRequest]) -> List[InferenceResponse]:
    return [InferenceResponse([Tensor("out", one.inputs()[0].as_numpy())]) for one in requests]


def only_error(result: Row) -> Tuple[ErrorCode, str]:
    """Of a request that was refused without being executed."""
    _, flags, _, kept, blocks, outputs, error, _ = result
    assert flags == FINAL | RETURNED | FAILURE and not kept and not blocks and not outputs
    return ErrorCode(error[0]), error[1]
