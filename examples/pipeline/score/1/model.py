"""Says how good each word is, from -1 to 1: the second step of the ensemble `review`. A real one would have a network here."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

LEXICON = {b"great": 1.0, b"good": 0.5, b"fine": 0.25, b"dull": -0.5, b"awful": -1.0}


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            words = pb_utils.get_input_tensor_by_name(request, "WORDS").as_numpy()
            scores = np.array([LEXICON.get(word, 0.0) for word in words], np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", scores)]))
        return responses
