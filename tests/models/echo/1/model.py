"""Says what it was told beside the tensors, and answers with parameters of its own."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            told = {
                "id": request.request_id(),
                "parameters": json.loads(request.parameters()),
                "correlation_id": request.correlation_id(),
                "flags": request.flags(),
                "timeout": request.timeout(),
                "requested": sorted(request.requested_output_names()),
            }
            output = pb_utils.Tensor("REQUEST", np.array([json.dumps(told)], dtype=object))
            responses.append(pb_utils.InferenceResponse([output], parameters={"answered": True, "text": "déjà", "number": 7}))
        return responses
