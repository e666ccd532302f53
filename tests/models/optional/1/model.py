"""Says which inputs were given."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        names = [np.array([tensor.name() for tensor in request.inputs()], dtype=object) for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("NAMES", value)]) for value in names]
