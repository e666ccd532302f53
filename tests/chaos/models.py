"""What the server serves meanwhile: for each way through it a model whose answer can be checked to the byte."""

from __future__ import annotations

from pathlib import Path

from model_repository import write_model

SEQUENCE_STEPS = 5

_DOUBLE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", 2 * r.inputs()[0].as_numpy() + 1)]) for r in requests]
"""

_CALLER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.ask(request) for request in requests]

    def ask(self, request):
        call = pb_utils.InferenceRequest(model_name="double", requested_output_names=["OUT"], inputs=request.inputs())
        response = call.exec()
        if response.has_error():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(response.error().message(), response.error().code()))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", 2 * response.output_tensors()[0].as_numpy() + 1)])
"""

_COUNT = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''As many responses as IN says: the first element of IN and the number of the response.'''

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            first, count = request.inputs()[0].as_numpy()
            for number in range(count):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([first, number]))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_SUM = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''The sum of its sequence so far.'''

    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.add(request) for request in requests]

    def add(self, request):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        key = request.correlation_id()
        if tensors["START"].flat[0]:
            self.sums[key] = 0
        self.sums[key] = total = self.sums[key] + tensors["IN"]
        if tensors["END"].flat[0]:
            del self.sums[key]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", total)])
"""

_ONE = """
input { name: "IN" data_type: TYPE_INT64 dims: [%(dims)s] }
output { name: "OUT" data_type: TYPE_INT64 dims: [%(dims)s] }
"""
_SEQUENCES = """
sequence_batching { max_sequence_idle_microseconds: 60000000 oldest { max_candidate_sequences: 16 } control_input [
  { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } },
  { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] } }
] }
"""
_PIPELINE = """
platform: "ensemble"
max_batch_size: 8
input { name: "IN" data_type: TYPE_INT64 dims: [-1] }
output { name: "OUT" data_type: TYPE_INT64 dims: [-1] }
ensemble_scheduling { step [
  { model_name: "batched" model_version: -1 input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "HALF" } },
  { model_name: "batched" model_version: -1 input_map { key: "IN" value: "HALF" } output_map { key: "OUT" value: "OUT" } }
] }
"""


def write_models(root: Path) -> None:
    """``double`` (two instances), ``batched``, ``caller`` (asks ``double``), ``count`` (decoupled), ``sum`` (sequences), ``pipeline`` (twice
    through ``batched``), and ``guest``, which is loaded and unloaded."""
    # The deaths are wanted here: the budget that guards against a model that cannot live is not what is shown.
    alive = 'parameters { key: "restart_limit" value: { string_value: "1000000" } }\n'
    several = _ONE % {"dims": "-1"} + alive
    write_model(root, "double", _DOUBLE, several + "instance_group { count: 2 kind: KIND_CPU }\n")
    write_model(root, "guest", _DOUBLE, several)
    write_model(root, "caller", _CALLER, several)
    write_model(root, "batched", _DOUBLE, f"max_batch_size: 8\ndynamic_batching {{ max_queue_delay_microseconds: 200 }}\n{several}")
    write_model(root, "count", _COUNT, _ONE % {"dims": "2"} + alive + "model_transaction_policy { decoupled: true }\n")
    write_model(root, "sum", _SUM, _ONE % {"dims": "1"} + alive + _SEQUENCES)
    (root / "pipeline" / "1").mkdir(parents=True)
    (root / "pipeline" / "config.pbtxt").write_text(_PIPELINE)
