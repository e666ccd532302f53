"""Takes as long for a request as the request says, without using a processor: what it can do is known, and leaves the machine to others."""

from __future__ import annotations

import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            cost = pb_utils.get_input_tensor_by_name(request, "COST_US").as_numpy()
            time.sleep(int(cost.sum()) / 1e6)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("COST_US", cost)]))
        return responses
