"""A decoupled model: it answers a request with as many responses as it likes, each sent when it is there.

`execute` of such a model returns None, and each request has a sender for its responses. A sender also works in a thread
and after `execute` has returned: that, or `async def execute`, is for streams that take long, because the next request
is executed as soon as `execute` returns.
"""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils

SECONDS_BETWEEN = 0.02  # as if each number took some work


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            start = int(pb_utils.get_input_tensor_by_name(request, "START").as_numpy()[0])
            sender = request.get_response_sender()
            if start < 0:
                refusal = pb_utils.TritonError("START must not be negative", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=refusal), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            for count in range(start, 0, -1):
                time.sleep(SECONDS_BETWEEN)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("COUNT", np.array([count], np.int32))]))
            # Every request needs this once: by itself, as here, or along with the last response.
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
