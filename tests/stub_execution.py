"""What a stub does with a batch of requests, in one process, and what a test makes of its answers."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import numpy as np
from stub_runtime import Runtime
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.message import ErrorCode
from stublet.stub.exchange import Exchange
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor

Row = Tuple[Any, ...]
Execute = Callable[[List[InferenceRequest]], Any]

LARGE = [1.0] * (LARGE_BYTES // 4)

X = Tensor("x", np.ones(1))


def response(*values: float) -> InferenceResponse:
    return InferenceResponse([Tensor("out", np.array(values, np.float32))])


def echo(requests: List[InferenceRequest]) -> List[InferenceResponse]:
    return [InferenceResponse([Tensor("out", request.inputs()[0].as_numpy())]) for request in requests]


def execute(runtime: Runtime, function: Execute, *batch: Row) -> List[Row]:
    """What a stub does with a batch; the results that come of it."""
    holder, execution = runtime.executions.begin(batch)
    try:
        values = [function(holder.pop())]
    except BaseException as error:
        execution.raised(error)
        return runtime.results()
    if Exchange.decoupled and values[0] is None:
        execution.went_on()
    else:
        execution.returned(values)
    return runtime.results()


def values(runtime: Runtime, result: Row) -> List[Tuple[int, List[float]]]:
    return [(name, array.tolist()) for name, array in runtime.store.read((result[4], result[5]))]  # type: ignore[arg-type]


def error_of(result: Row) -> Optional[Tuple[ErrorCode, str]]:
    return (ErrorCode(result[6][0]), result[6][1]) if result[6] else None
