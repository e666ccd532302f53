"""Answers with COUNT responses, numbered from 0, and a last one that says how long sending them took."""

from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            self._answer(request)

    def _answer(self, request: pb_utils.InferenceRequest) -> None:
        count = int(pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()[0])
        sender = request.get_response_sender()
        started = time.perf_counter_ns()
        for number in range(count):
            index = np.array([number], dtype=np.int32)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("INDEX", index)]))
        taken = time.perf_counter_ns() - started
        last = pb_utils.InferenceResponse([pb_utils.Tensor("NANOSECONDS", np.array([taken]))])
        sender.send(last, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
