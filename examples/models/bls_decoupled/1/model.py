"""A model that asks a decoupled model, which may respond any number of times.

`exec(decoupled=True)` returns at once, with an iterator that waits for each response. In a coroutine it is
`await request.async_exec(decoupled=True)`.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        call = pb_utils.InferenceRequest(model_name="countdown", inputs=request.inputs(), requested_output_names=["COUNT"])
        counts = []
        for response in call.exec(decoupled=True):
            if response.has_error():
                return pb_utils.InferenceResponse(error=response.error())
            # The final flag, when it was sent alone, is an item too: one without outputs.
            if response.output_tensors():
                counts.append(pb_utils.get_output_tensor_by_name(response, "COUNT").as_numpy())
        joined = np.concatenate(counts) if counts else np.empty(0, np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("COUNTS", joined)])
