"""Multiplies on the GPU, in memory of the client's, and of the model's own: the runtime copies the product to where the client wants it.

The input is the client's own memory: the model must not write to it.
"""

from __future__ import annotations

import cupy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._device = cupy.cuda.Device(int(args["model_instance_device_id"]))

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        with self._device:
            for request in requests:
                tensor = pb_utils.get_input_tensor_by_name(request, "INPUT")
                given = cupy.asarray(tensor.as_numpy()) if tensor.is_cpu() else cupy.from_dlpack(tensor)
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT", 2 * given)]))
        return responses
