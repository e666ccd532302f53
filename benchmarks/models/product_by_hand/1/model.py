"""A matrix product of images, made smaller, with weights: once for each batch, whose requests are joined and whose result is split by hand."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.random.default_rng(0).integers(-4, 5, (256, 16)).astype(np.float32)

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests]
        product = np.concatenate(inputs).reshape(-1, 256, 48).sum(axis=2) @ self.weights
        responses, start = [], 0
        for images in inputs:
            own = product[start : start + len(images)]
            start += len(images)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", own)]))
        return responses
