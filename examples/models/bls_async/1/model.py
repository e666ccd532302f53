"""A model that asks another model for several things at once: `async_exec` in a coroutine.

Calls that do not need each other's answers go out together, and `asyncio.gather` waits for all of them. They are
computed at the same time as far as the other model has instances for it.
"""

from __future__ import annotations

import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    # async_exec needs an event loop. `async def execute` runs in one that the server keeps for the model.
    async def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return list(await asyncio.gather(*(self._answer(request) for request in requests)))

    async def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        first, second, third, fourth = (pb_utils.get_input_tensor_by_name(request, f"INPUT{i}") for i in range(4))
        try:
            halves = await asyncio.gather(add(first, second), add(third, fourth))
            total = await add(*halves)
        except pb_utils.TritonModelException as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("SUM", total)])


async def add(left: pb_utils.Tensor, right: pb_utils.Tensor) -> pb_utils.Tensor:
    """The sum of two tensors, by the model `add_sub`. Only the output that is asked for is sent."""
    # A tensor gets another name without a copy of what it holds, over DLPack.
    inputs = [pb_utils.Tensor.from_dlpack(f"INPUT{i}", tensor) for i, tensor in enumerate((left, right))]
    call = pb_utils.InferenceRequest(model_name="add_sub", inputs=inputs, requested_output_names=["OUTPUT0"])
    response = await call.async_exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, "OUTPUT0")
