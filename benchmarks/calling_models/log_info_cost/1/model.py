"""Times COUNT lines to the server's log, numbered, so that those that are missing there can be told."""

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
        for number in range(count):
            pb_utils.Logger.log_info(f"benchmark line {number}.")
        taken = time.perf_counter_ns() - started
        return pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", np.array([taken]))])
