"""Stands for a model that is too large to be kept in memory beside all others. `on_demand` loads it."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            degrees = pb_utils.get_input_tensor_by_name(request, "DEGREES").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("DEGREES", (degrees - 32) / 1.8)]))
        return responses
