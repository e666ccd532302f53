"""Does what it is told: runs the Python text of its input, with ``request`` and ``model`` in scope.

The text may set ``result``, the output's one string, or ``returned``, which ``execute`` then returns as it is. The parameters
``initialize`` and ``finalize`` of the configuration are run at those moments.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import time

import numpy as np
import triton_python_backend_utils as pb_utils

TOOLS = {
    "ctypes": ctypes,
    "json": json,
    "logging": logging,
    "os": os,
    "signal": signal,
    "sys": sys,
    "time": time,
    "np": np,
    "pb_utils": pb_utils,
}


class TritonPythonModel:
    def initialize(self, args):
        self.parameters = json.loads(args["model_config"])["parameters"]
        self._run_hook("initialize")

    def execute(self, requests):
        responses = []
        for request in requests:
            scope = {**TOOLS, "model": self, "request": request, "result": ""}
            exec(request.inputs()[0].as_numpy()[0].decode(), scope)
            if "returned" in scope:
                return scope["returned"]
            output = pb_utils.Tensor("RESULT", np.array([scope["result"]], dtype=object))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses

    def finalize(self):
        self._run_hook("finalize")

    def _run_hook(self, name):
        if name in self.parameters:
            exec(self.parameters[name]["string_value"], {**TOOLS, "model": self})
