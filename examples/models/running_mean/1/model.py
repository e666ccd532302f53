"""A model with implicit state: it remembers nothing itself, but is told with each request what it said with the one before.

It does not have to know which sequence a request belongs to, whether that begins or ends, nor when to forget it.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "VALUE").as_numpy()[0, 0]
            count, total = pb_utils.get_input_tensor_by_name(request, "SO_FAR").as_numpy()[0]
            count, total = count + 1, total + value
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("MEAN", np.array([[total / count]])),
                        pb_utils.Tensor("FROM_NOW_ON", np.array([[count, total]])),  # not sent to the client
                    ]
                )
            )
        return responses
