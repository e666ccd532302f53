"""Runs the Python text of its input, with ``request``, its ``sender``, its ``data`` and ``model`` in scope. Text with an ``await`` runs as a
coroutine.

The text may set ``result`` and ``output``, which become the outputs, or ``returned``, which ``execute`` then returns as it is. A
decoupled model returns nothing else. The parameters ``initialize`` and ``finalize`` of the configuration are run at those moments.
"""

# ruff: noqa: F401 - what is imported is for the text to use

import ast
import asyncio
import ctypes
import gc
import inspect
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import c_python_backend_utils
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(value="", data=None, **more):
    """The outputs that say ``value``, and the array."""
    tensors = [pb_utils.Tensor("RESULT", np.array([str(value)], object))]
    if data is not None:
        tensors.append(pb_utils.Tensor("DATA", np.asarray(data, np.float32)))
    return pb_utils.InferenceResponse(tensors, **more)


def failure(text, code=pb_utils.TritonError.INTERNAL):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def call(model, code="", data=None, wanted=(), **more):
    """A request to another scripted model."""
    inputs = [pb_utils.Tensor("CODE", np.array([code], object))]
    if data is not None:
        inputs.append(data if isinstance(data, pb_utils.Tensor) else pb_utils.Tensor("DATA", np.asarray(data, np.float32)))
    return pb_utils.InferenceRequest(model_name=model, inputs=inputs, requested_output_names=list(wanted), **more)


def said(answer):
    """What a response says: its error, its text, or nothing."""
    if answer.has_error():
        return "error: " + answer.error().message()
    tensor = pb_utils.get_output_tensor_by_name(answer, "RESULT")
    return "" if tensor is None else tensor.as_numpy()[0].decode()


def array(answer):
    """The array of a response."""
    return pb_utils.get_output_tensor_by_name(answer, "DATA").as_numpy()


def raised(function, *arguments, **more):
    """What calling the function raises."""
    try:
        function(*arguments, **more)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def until(condition, seconds=30):
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the text waits for did not come true")
        time.sleep(0.002)


async def until_async(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the text waits for did not come true")
        await asyncio.sleep(0.002)


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def double(number):
    """Work for a ``multiprocessing.Pool``."""
    return said(call("answers", f"result = {number * 2}").exec())


free_memory = c_python_backend_utils.shared_memory.free_memory

TOOLS = dict(globals())


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.parameters = config["parameters"]
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.instance = args["model_instance_name"]
        self.executed = []
        self.errors = []
        self.released = threading.Event()
        self._run_hook("initialize")

    def execute(self, requests):
        (request,) = requests
        data = pb_utils.get_input_tensor_by_name(request, "DATA")
        text = pb_utils.get_input_tensor_by_name(request, "CODE").as_numpy()[0].decode()
        scope = {**TOOLS, "model": self, "request": request, "sender": request.get_response_sender(), "data": data}
        value = eval(compile(text, "told", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
        if inspect.iscoroutine(value):
            return self._finish(value, scope)
        return self._returned(scope)

    async def _finish(self, coroutine, scope):
        await coroutine
        return self._returned(scope)

    def _returned(self, scope):
        if "returned" in scope or self.decoupled:
            return scope.get("returned")
        return [response(scope.get("result", ""), scope.get("output"))]

    def finalize(self):
        self._run_hook("finalize")

    def _run_hook(self, name):
        if name in self.parameters:
            exec(self.parameters[name]["string_value"], {**TOOLS, "model": self})
