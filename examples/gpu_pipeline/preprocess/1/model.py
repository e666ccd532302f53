"""The first step, with CuPy: the picture comes in host memory, for it comes from a client, and what is made of it is on the GPU.

`pb_utils.Tensor.from_dlpack` makes an output of a CuPy array where it is. It waits for the work that the array still needs, on the
stream that it is computed on.
"""

from __future__ import annotations

import cupy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._device = cupy.cuda.Device(int(args["model_instance_device_id"]))
        with self._device:
            # How bright an RGB colour looks (ITU-R BT.601), for channels from 0 to 255 and a grey from 0 to 1.
            self._luma = cupy.array([0.299, 0.587, 0.114], cupy.float32) / 255

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        with self._device:
            for request in requests:
                image = cupy.asarray(pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy())
                grey = pb_utils.Tensor.from_dlpack("GREY", image.astype(cupy.float32) @ self._luma)
                responses.append(pb_utils.InferenceResponse([grey]))
        return responses
