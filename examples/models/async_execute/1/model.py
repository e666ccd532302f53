"""A model that waits for something else most of the time, such as another service or a database: `async def execute`.

While one execution waits, the instance can begin others, up to `max_concurrent` of them (see config.pbtxt). All of them
run in the same thread, one at a time between two `await`s, so what they share needs no lock.
"""

from __future__ import annotations

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._in_progress = 0

    async def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return list(await asyncio.gather(*(self._answer(request) for request in requests)))

    async def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        milliseconds = int(pb_utils.get_input_tensor_by_name(request, "MILLISECONDS").as_numpy()[0])
        self._in_progress += 1
        in_progress = np.array([self._in_progress], np.int32)
        try:
            await asyncio.sleep(milliseconds / 1000)  # the call of another service
        finally:
            self._in_progress -= 1
        return pb_utils.InferenceResponse([pb_utils.Tensor("IN_PROGRESS", in_progress)])
