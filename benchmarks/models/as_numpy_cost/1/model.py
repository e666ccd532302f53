"""Times how it gets at two inputs of one request: a large one takes no longer than a small one, unless copied.

Of one request, because after 64 MiB have passed through the caches everything is slower for a while; and in turns, because what comes
first pays for the caches of both.
"""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._first = 0

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        self._first = 1 - self._first
        taken = np.zeros(2, dtype=np.int64)
        for index in (self._first, 1 - self._first):
            started = time.perf_counter_ns()
            pb_utils.get_input_tensor_by_name(request, f"INPUT{index}").as_numpy()
            taken[index] = time.perf_counter_ns() - started
        return pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", taken)])
