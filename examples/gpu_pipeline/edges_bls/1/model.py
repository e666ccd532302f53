"""The three steps by BLS. What a called model leaves on the GPU comes back as a tensor there, and goes to the next one as it is. For that
this model needs no library, but the runtime copies the tensor, on the GPU, to memory of this process: an ensemble does without that copy.
The last answer is for the client, so it is asked for in host memory.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

STEPS = [("preprocess", "GREY"), ("sobel", "STRENGTH"), ("postprocess", "EDGES")]
"""The models, each with its output, which is called as the input of the next."""

HOST = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        responses = []
        for request in requests:
            try:
                edges = self._edges(pb_utils.get_input_tensor_by_name(request, "IMAGE"))
                responses.append(pb_utils.InferenceResponse([edges]))
            except pb_utils.TritonModelException as error:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        return responses

    def _edges(self, tensor: pb_utils.Tensor) -> pb_utils.Tensor:
        """What comes out at the end.

        Raises:
            TritonModelException: a step failed.
        """
        for model, wanted in STEPS:
            preferred = {"preferred_memory": HOST} if wanted == "EDGES" else {}
            call = pb_utils.InferenceRequest(model_name=model, inputs=[tensor], requested_output_names=[wanted], **preferred)
            answer = call.exec()
            if answer.has_error():
                raise pb_utils.TritonModelException(f"{model}: {answer.error().message()}")
            tensor = pb_utils.get_output_tensor_by_name(answer, wanted)
        return tensor
