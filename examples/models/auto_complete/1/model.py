"""A model without config.pbtxt: it says in Python what its inputs and outputs are.

`auto_complete_config` is asked before any instance is started, in a process of its own. If there were a config.pbtxt,
what it says would count, and here the rest would be filled in; a contradiction is an error.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: pb_utils.ModelConfig) -> pb_utils.ModelConfig:
        # With a batch size the first dimension of every tensor is that of the batch, and is not among its `dims`.
        config.set_max_batch_size(8)
        config.add_input({"name": "VALUES", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "MEAN", "data_type": "TYPE_FP32", "dims": [1]})
        return config

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "VALUES").as_numpy()
            mean = values.mean(axis=1, keepdims=True, dtype=np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("MEAN", mean)]))
        return responses
