"""Ensembles made by a test, and the models that they consist of."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Mapping, Sequence, Tuple

from model_repository import write_model

IO = """
input { name: "IN" data_type: TYPE_FP32 dims: [-1] }
output { name: "OUT" data_type: TYPE_FP32 dims: [-1] }
"""
PLUS_ONE = """
import json
import os
import signal
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Adds one. What it does instead when the first number is negative, see below. While there is a file named "gate" it waits.'''

    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.gate = parameters["gate"]["string_value"] if "gate" in parameters else ""

    def execute(self, requests):
        return [self.answer(request, pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()) for request in requests]

    def answer(self, request, x):
        if self.gate and os.path.exists(self.gate):
            open(self.gate + ".begun", "w").close()
        while self.gate and os.path.exists(self.gate):
            time.sleep(0.001)
        first = x.flat[0] if x.size else 0
        if first == -10:
            raise ValueError("bad number")
        if first == -20:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("not me", pb_utils.TritonError.UNSUPPORTED))
        if first == -30:
            return pb_utils.InferenceResponse([])
        if first == -40:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == -50:
            told = [request.request_id(), request.correlation_id(), request.flags(), request.timeout(), request.parameters()]
            return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", x)], parameters={"told": json.dumps(told)})
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", x + 1)])
"""
COUNT = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Sends the numbers below its input.'''

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().flat[0])):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([number], np.float32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
SUM = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Adds A, and B if it is there, and says in WHICH what was.'''

    def execute(self, requests):
        responses = []
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            which = pb_utils.Tensor("WHICH", np.array([" ".join(sorted(inputs))], object))
            total = sum(inputs.values(), np.zeros(1, np.float32))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", total), which]))
        return responses
"""
SUM_IO = """
input [ { name: "A" data_type: TYPE_FP32 dims: [-1] optional: true }, { name: "B" data_type: TYPE_FP32 dims: [-1] optional: true } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [-1] }, { name: "WHICH" data_type: TYPE_STRING dims: [1] } ]
"""
DECOUPLED = "model_transaction_policy { decoupled: true }"
X = 'input { name: "X" data_type: TYPE_FP32 dims: [-1] }'
Y = 'output { name: "Y" data_type: TYPE_FP32 dims: [-1] }'

Step = Tuple[str, Mapping[str, str], Mapping[str, str]]
"""(model, input map, output map)."""


def plus_one(root: Path, name: str, extra: str = "") -> Path:
    """A model that adds one."""
    return write_model(root, name, PLUS_ONE, IO + extra)


def count(root: Path, name: str) -> Path:
    """A decoupled model that counts."""
    return write_model(root, name, COUNT, IO + DECOUPLED)


def add(root: Path, name: str) -> Path:
    """A model with two optional inputs that adds them."""
    return write_model(root, name, SUM, SUM_IO)


def ensemble(root: Path, name: str, steps: Iterable[Step], inputs: str = X, outputs: str = Y, extra: str = "", section: str = "") -> Path:
    """An ensemble; returns its directory."""
    directory = root / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(ensemble_config(steps, inputs, outputs, extra, section))
    return directory


def ensemble_config(steps: Iterable[Step], inputs: str = X, outputs: str = Y, extra: str = "", section: str = "") -> str:
    """The configuration of an ensemble. ``extra`` stands beside the section, ``section`` within it."""
    text = "".join(f'step {{ model_name: "{model}" model_version: -1 {_map("input", i)} {_map("output", o)} }}\n' for model, i, o in steps)
    return f'platform: "ensemble" {extra}\n{inputs}\n{outputs}\nensemble_scheduling {{ {section}\n{text} }}\n'


def _map(kind: str, names: Mapping[str, str]) -> str:
    return " ".join(f'{kind}_map {{ key: "{own}" value: "{tensor}" }}' for own, tensor in names.items())


def chain(*models: str) -> Sequence[Step]:
    """Steps from X to Y, one after the other."""
    tensors = ["X", *(f"between_{number}" for number in range(1, len(models))), "Y"]
    return [(model, {"IN": before}, {"OUT": after}) for model, before, after in zip(models, tensors, tensors[1:])]


def tensors(kind: str, *names: str, dims: str = "-1", data_type: str = "TYPE_FP32", more: str = "") -> str:
    """Inputs or outputs."""
    return "".join(f'{kind} {{ name: "{name}" data_type: {data_type} dims: [{dims}] {more} }}\n' for name in names)
