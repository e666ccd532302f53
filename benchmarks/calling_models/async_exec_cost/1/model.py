"""Times COUNT calls of identity_fp32, sixteen at a time, each with a new tensor around one array of ELEMENTS ones."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import triton_python_backend_utils as pb_utils

_AT_A_TIME = 16


class TritonPythonModel:
    async def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [await self._answer(request) for request in requests]

    async def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        count = int(pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()[0])
        ones = np.ones(pb_utils.get_input_tensor_by_name(request, "ELEMENTS").as_numpy()[0], dtype=np.float32)
        started = time.perf_counter_ns()
        for _ in range(0, count, _AT_A_TIME):
            outputs = await asyncio.gather(*(_call(ones) for _ in range(_AT_A_TIME)))
        taken = time.perf_counter_ns() - started
        if not all(np.array_equal(output, ones) for output in outputs):
            raise pb_utils.TritonModelException("identity_fp32 gave something else back")
        return pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", np.array([taken]))])


async def _call(array: np.ndarray) -> np.ndarray:
    request = pb_utils.InferenceRequest(
        model_name="identity_fp32",
        requested_output_names=["OUTPUT0"],
        inputs=[pb_utils.Tensor("INPUT0", array)],
    )
    response = await request.async_exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()
