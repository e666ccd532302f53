"""Times how it gets at its input: a large one takes no longer than a small one, unless copied."""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        started = time.perf_counter_ns()
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        tensor.as_numpy()
        taken = np.array([time.perf_counter_ns() - started], dtype=np.int64)
        return pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", taken)])
