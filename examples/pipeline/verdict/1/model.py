"""Sums the scores of words up in one word: the third step of the ensemble `review`."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            scores = pb_utils.get_input_tensor_by_name(request, "SCORES").as_numpy()
            if not scores.size:
                responses.append(
                    pb_utils.InferenceResponse(error=pb_utils.TritonError("nothing to judge", pb_utils.TritonError.INVALID_ARG))
                )
                continue
            total = float(scores.sum())
            verdict = "praise" if total > 0 else "complaint" if total < 0 else "neither"
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("VERDICT", np.array([verdict.encode()], np.object_))]))
        return responses
