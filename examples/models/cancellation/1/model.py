"""A model that stops working for a client that has gone.

A client gives up when its own time-out is over, or when it is ended; the server sees that the connection is closed. It
cannot interrupt the model, which has to look from time to time: `is_cancelled()` costs next to nothing. A model that
does not look works on for nobody, and those that wait for the instance wait for that too.
"""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils

SECONDS_OF_A_STEP = 0.01


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._abandoned = 0

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        steps = int(pb_utils.get_input_tensor_by_name(request, "STEPS").as_numpy()[0])
        for done in range(steps):
            if request.is_cancelled():
                self._abandoned += 1
                # Nobody reads it, but every request needs a response.
                error = pb_utils.TritonError(f"cancelled after {done} of {steps} steps", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse(error=error)
            time.sleep(SECONDS_OF_A_STEP)
        outputs = {"DONE": steps, "ABANDONED": self._abandoned}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.array([n], np.int32)) for name, n in outputs.items()])
