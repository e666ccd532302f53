"""One computation for a whole batch: `pb_utils.batch` gives the input of all requests as one tensor, and `pb_utils.split`
makes a response to each request from what was computed. Both are stublet's own."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

COLORS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "red": (255, 0, 0), "green": (0, 128, 0),
    "blue": (0, 0, 255), "yellow": (255, 255, 0), "orange": (255, 165, 0), "brown": (139, 69, 19), "pink": (255, 192, 203),
}  # fmt: skip


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._names = np.array(list(COLORS), object)
        self._colors = np.array(list(COLORS.values()), np.float32)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        # [n, 3]: the rows of the first request, then those of the second, and so on. A request may have several.
        batch = pb_utils.batch(requests, "COLOR").as_numpy()
        distances = np.linalg.norm(batch[:, None, :] - self._colors, axis=2)
        nearest = distances.argmin(axis=1)
        outputs = [
            pb_utils.Tensor("NAME", self._names[nearest][:, None]),
            pb_utils.Tensor("DISTANCE", distances.min(axis=1, keepdims=True)),
            pb_utils.Tensor("TOGETHER", np.full((len(batch), 1), len(requests), np.int32)),
        ]
        return pb_utils.split(requests, outputs)
