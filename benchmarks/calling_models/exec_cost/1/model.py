"""Times COUNT calls of identity_fp32, one after another, with one array of ELEMENTS ones.

Each call makes a new tensor of the array, as for new data; unless KEPT, then all calls are given the same tensor.
"""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        names = ("COUNT", "ELEMENTS", "KEPT")
        count, elements, kept = (int(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]) for name in names)
        ones = np.ones(elements, dtype=np.float32)
        tensor = pb_utils.Tensor("INPUT0", ones)
        started = time.perf_counter_ns()
        for _ in range(count):
            output = _call(tensor if kept else pb_utils.Tensor("INPUT0", ones))
        taken = time.perf_counter_ns() - started
        if not np.array_equal(output, ones):
            raise pb_utils.TritonModelException("identity_fp32 gave something else back")
        return pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", np.array([taken]))])


def _call(tensor: pb_utils.Tensor) -> np.ndarray:
    request = pb_utils.InferenceRequest(model_name="identity_fp32", requested_output_names=["OUTPUT0"], inputs=[tensor])
    response = request.exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()
