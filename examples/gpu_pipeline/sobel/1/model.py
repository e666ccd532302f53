"""The second step, with PyTorch: a convolution, on the tensor where CuPy made it.

Inputs may be in either memory, however the model is configured: from another model they come as that left them, from a client in host
memory. `.to(device)` does nothing to a tensor that is there already.
"""

from __future__ import annotations

import torch
import triton_python_backend_utils as pb_utils
from torch.nn.functional import conv2d, pad


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._device = torch.device("cuda", int(args["model_instance_device_id"]))
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self._sobel = torch.stack([across, across.T]).unsqueeze(1).to(self._device)
        self._told = False

    @torch.inference_mode()
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "GREY")
            if not self._told:
                pb_utils.Logger.log_info(f"GREY comes in {'host' if tensor.is_cpu() else 'device'} memory")
                self._told = True
            grey = torch.from_dlpack(tensor).to(self._device)
            strength = pb_utils.Tensor.from_dlpack("STRENGTH", self._edges(grey))
            responses.append(pb_utils.InferenceResponse([strength]))
        return responses

    def _edges(self, grey: torch.Tensor) -> torch.Tensor:
        """Strength of the edge at each pixel, float32 [height, width], of a grey picture of that size."""
        bordered = pad(grey[None, None], (1, 1, 1, 1), mode="replicate")
        horizontal, vertical = conv2d(bordered, self._sobel)[0]
        return torch.hypot(horizontal, vertical)
