"""Times COUNT questions whether its request is cancelled, as a long computation asks between two steps."""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        count = int(pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()[0])
        started = time.perf_counter_ns()
        for _ in range(count):
            request.is_cancelled()
        taken = time.perf_counter_ns() - started
        return pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", np.array([taken]))])
