"""A model that writes to the server's log, in each of the ways that get there.

A line in the log begins with a letter for its level, the time and the process, and names the instance and the line of
code that it comes from:

    I1122 10:38:48.123456 5763 server_log_0_0 model.py:26] 5 bytes in request 'a'
"""

from __future__ import annotations

import logging

import numpy as np
import triton_python_backend_utils as pb_utils

logger = logging.getLogger(__name__)


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[0]
        name = request.request_id()
        pb_utils.Logger.log_info(f"{len(text)} bytes in request '{name}'")
        # Only in the log of a server that runs with --log-verbose=1.
        pb_utils.Logger.log_verbose(f"request '{name}' says {text!r}")
        if not text:
            pb_utils.Logger.log_warn(f"nothing in request '{name}'")
        # Python's own logging comes there too, from the level on that it is set to (WARNING), and so does what is printed.
        logger.warning("request '%s' by way of the module logging", name)
        print(f"request '{name}' by way of print", flush=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LENGTH", np.array([len(text)], np.int32))])
