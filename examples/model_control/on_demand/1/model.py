"""A model that loads other models when they are needed, and keeps one of them at a time.

Only a server with --model-control-mode=explicit lets models be loaded and unloaded while it runs. One instance, so only
one request at a time decides which model is loaded.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

KNOWN = ("to_celsius", "to_fahrenheit")  # a client must not be able to name just any model


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._loaded = ""

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        name = pb_utils.get_input_tensor_by_name(request, "MODEL").as_numpy()[0].decode()
        if name not in KNOWN:
            refusal = pb_utils.TritonError(f"'{name}' is none of {', '.join(KNOWN)}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        try:
            self._make_ready(name)
        except pb_utils.TritonModelException as error:  # the text says why it does not load
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE))
        call = pb_utils.InferenceRequest(
            model_name=name,
            inputs=[pb_utils.get_input_tensor_by_name(request, "DEGREES")],
            requested_output_names=["DEGREES"],
        )
        response = call.exec()
        return pb_utils.InferenceResponse(response.output_tensors(), response.error())

    def _make_ready(self, name: str) -> None:
        """Loads the model, in the place of the one that is loaded."""
        # Somebody else may have unloaded it meanwhile, or its process may have died.
        if name == self._loaded and is_ready(name):
            return
        if self._loaded and self._loaded != name:
            pb_utils.unload_model(self._loaded)  # returns at once; the model finishes what it was asked
            self._loaded = ""
        pb_utils.load_model(name)  # returns when the model serves
        self._loaded = name
        pb_utils.Logger.log_info(f"loaded '{name}'")


def is_ready(name: str) -> bool:
    try:
        return pb_utils.is_model_ready(name)
    except pb_utils.TritonModelException:  # the server does not know it: it was unloaded
        return False
