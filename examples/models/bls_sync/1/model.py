"""A model that asks another model ("business logic scripting"), and waits for its answer.

a² - b² = (a + b)(a - b), and `add_sub` knows both factors. The tensors of a call and of its answer stay where they are
in shared memory; neither is copied on the way.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        call = pb_utils.InferenceRequest(
            model_name="add_sub",
            # The inputs have the names that add_sub has for them, so they can be handed on as they are.
            inputs=request.inputs(),
            requested_output_names=["OUTPUT0", "OUTPUT1"],
        )
        response = call.exec()
        # What goes wrong in the other model is not raised here: it is an error in its response.
        if response.has_error():
            return pb_utils.InferenceResponse(error=response.error())
        total = pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()
        difference = pb_utils.get_output_tensor_by_name(response, "OUTPUT1").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total * difference)])
