"""Splits a text into its words, in lower case: the first step of the ensemble `review`."""

from __future__ import annotations

import re

import numpy as np
import triton_python_backend_utils as pb_utils

WORD = re.compile(r"\w+")


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[0].decode()
            words = np.array([word.encode() for word in WORD.findall(text.lower())], np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("WORDS", words)]))
        return responses
