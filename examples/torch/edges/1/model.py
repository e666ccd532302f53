"""A PyTorch model that takes its input and gives its output over DLPack, without NumPy and without a copy.

`torch.from_dlpack` makes a torch tensor of the memory in which the request arrived; `pb_utils.Tensor.from_dlpack` makes
an output of the torch tensor that was computed. The computation is a Sobel filter, as a convolution.
"""

from __future__ import annotations

import torch
import triton_python_backend_utils as pb_utils
from torch.nn.functional import conv2d, pad


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        # How bright an RGB colour looks (ITU-R BT.601), for channels from 0 to 255 and a grey from 0 to 1.
        self._luma = torch.tensor([0.299, 0.587, 0.114]) / 255
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self._sobel = torch.stack([across, across.T]).unsqueeze(1)

    @torch.inference_mode()
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            image = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, "IMAGE"))
            edges = pb_utils.Tensor.from_dlpack("EDGES", self._edges(image))
            responses.append(pb_utils.InferenceResponse([edges]))
        return responses

    def _edges(self, image: torch.Tensor) -> torch.Tensor:
        """Strength of the edge at each pixel, float32 [height, width], of an RGB image, uint8 [height, width, 3]."""
        grey = image.float() @ self._luma
        bordered = pad(grey[None, None], (1, 1, 1, 1), mode="replicate")
        horizontal, vertical = conv2d(bordered, self._sobel)[0]
        return torch.hypot(horizontal, vertical)
