"""A model with packages of its own: those of its requirements.txt, and not those of the server or of other models.

Two models of one server can so have different versions of the same package, and the server need not have either.
"""

from __future__ import annotations

import sys

import humanize
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            sizes = pb_utils.get_input_tensor_by_name(request, "BYTES").as_numpy()
            texts = [humanize.naturalsize(size) for size in sizes.tolist()]
            outputs = {"TEXT": texts, "PREFIX": [sys.prefix]}
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(k, np.array(v, np.object_)) for k, v in outputs.items()]))
        return responses
