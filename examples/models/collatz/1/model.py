"""An iterative model: each call of `execute` takes one step for every request, and asks for those again that are not done.

The same request comes again, with the same inputs, in a batch with others that may have come meanwhile. What was computed so
far the model keeps itself, by `correlation_id()`, which the server makes up.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

AGAIN = pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.numbers: dict[int, int] = {}

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            key = request.correlation_id()
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.numbers[key] = int(pb_utils.get_input_tensor_by_name(request, "NUMBER").as_numpy()[0, 0])
            sender = request.get_response_sender()
            number = self.numbers[key]
            if number < 1:
                refusal = pb_utils.TritonError("NUMBER must be positive", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=refusal), FINAL)
            elif number == 1 or request.is_cancelled():
                sender.send(flags=FINAL)
            else:
                self.numbers[key] = number = number // 2 if number % 2 == 0 else 3 * number + 1
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("NEXT", np.array([[number]]))]))
                request.set_release_flags(AGAIN)
                continue
            del self.numbers[key]
