"""Models with sequences, for tests that run them."""

from __future__ import annotations

from pathlib import Path

from model_repository import write_model

CONTROLS = """
control_input [
  { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } },
  { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 1] } },
  { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } },
  { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } }
]
"""

TOLD = """
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Answers the sum of its sequence, and what it was told. While there is a file named "gate" it waits before it answers.'''

    def initialize(self, args):
        self.sums = {}
        self.gate = json.loads(args["model_config"])["parameters"]["gate"]["string_value"]

    def execute(self, requests):
        if os.path.exists(self.gate):
            open(self.gate + ".begun", "w").close()
        while os.path.exists(self.gate):
            time.sleep(0.001)
        rows = []
        for request in requests:
            row = {t.name(): [str(t.as_numpy().dtype), list(t.as_numpy().shape), t.as_numpy().ravel().tolist()] for t in request.inputs()}
            row["CORRID"][2] = [i.decode() if isinstance(i, bytes) else i for i in row["CORRID"][2]]
            row["id"], row["flags"] = request.correlation_id(), request.flags()
            rows.append(row)
        responses = []
        for request, row in zip(requests, rows):
            value = request.inputs()[0].as_numpy()
            if row["READY"][2][0]:
                if value.flat[0] == -1:
                    os._exit(3)
                before = 0 if row["START"][2][0] else self.sums[row["id"]]
                self.sums[row["id"]] = value = value + before
            told = np.array([json.dumps([os.getpid(), rows])] * value.size, dtype=object).reshape(value.shape)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value), pb_utils.Tensor("TOLD", told)]))
        return responses
"""
IO = """
input { name: "IN" data_type: TYPE_INT32 dims: [1] }
output [ { name: "OUT" data_type: TYPE_INT32 dims: [1] }, { name: "TOLD" data_type: TYPE_STRING dims: [1] } ]
"""


def write_told(
    root: Path, name: str, section: str, gate: Path, max_batch_size: int = 0, instances: int = 1, data_type: str = "TYPE_UINT64"
) -> None:
    """A model that adds up what it gets in a sequence and says what it was told with each request."""
    write_model(root, name, TOLD, told_config(section, gate, max_batch_size, instances, data_type))


def told_config(section: str, gate: Path, max_batch_size: int, instances: int, data_type: str) -> str:
    return (
        f"max_batch_size: {max_batch_size}\n{IO}"
        f"instance_group {{ count: {instances} kind: KIND_CPU }}\n"
        f'parameters {{ key: "gate" value: {{ string_value: "{gate}" }} }}\n'
        f"sequence_batching {{ {section} {CONTROLS % data_type} }}\n"
    )


ACCUMULATE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Adds what it gets to its state. A request of 0 leaves the state out, one below 0 fails, and 99 says what is no state.'''

    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            state = pb_utils.get_input_tensor_by_name(request, "STATE").as_numpy()
            if value.flat[0] < 0:
                state += 1000  # its own copy: nobody else is to see it
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
                continue
            total = state + value.flat[0] if value.flat[0] != 99 else state.astype(np.float64)
            outputs = [pb_utils.Tensor("OUT", total.reshape(len(total), -1)[:, :1].astype(np.float32))]
            if value.flat[0]:
                outputs.append(pb_utils.Tensor("NEW_STATE", total))
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""


def write_accumulate(root: Path, name: str, elements: int, section: str = "", state: str = "", more: str = "", batch: int = 4) -> Path:
    """A model whose state has so many elements, and that says the first one."""
    return write_model(
        root,
        name,
        ACCUMULATE,
        f"max_batch_size: {batch}\n"
        'input { name: "IN" data_type: TYPE_FP32 dims: [1] }\n'
        'output { name: "OUT" data_type: TYPE_FP32 dims: [1] }\n'
        f"sequence_batching {{ {section} state {{\n"
        f'  input_name: "STATE" output_name: "NEW_STATE" data_type: TYPE_FP32 dims: [{elements}] {state}\n'
        f"}} }}\n{more}",
    )


COUNT = """
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

AGAIN = pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    '''Counts up to its input: says each number, if it is decoupled, else how many requests it was executed with each time.'''

    def initialize(self, args):
        self.counts = {}
        self.company = {}
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(__import__("json").loads(args["model_config"]))

    def execute(self, requests):
        responses = []
        for request in requests:
            key = request.correlation_id()
            value = request.inputs()[0].as_numpy()
            until, pause = int(value.flat[0]), float(value.flat[1])
            value[...] = -5  # it comes again, and as it was
            count = self.counts[key] = self.counts.get(key, 0) + 1
            self.company.setdefault(key, []).append(len(requests))
            time.sleep(pause)
            number = pb_utils.Tensor("OUT", np.array([[count]], np.int32))
            if self.decoupled:
                request.get_response_sender().send(pb_utils.InferenceResponse([number]), flags=0 if count < until else FINAL)
            if count < until:
                request.set_release_flags(AGAIN)
                responses.append(None)
            else:
                told = pb_utils.Tensor("COMPANY", np.array([[str(self.company.pop(key))]], dtype=object))
                flags = pb_utils.Tensor("FLAGS", np.array([[request.flags()]], np.int32))
                responses.append(pb_utils.InferenceResponse([number, told, flags]))
                del self.counts[key]
        return None if self.decoupled else responses
"""


def write_count(root: Path, name: str, section: str = "", decoupled: bool = False, more: str = "") -> Path:
    """A model that wants each request again until it has counted to its input."""
    return write_model(
        root,
        name,
        COUNT,
        "max_batch_size: 4\n"
        'input { name: "UNTIL" data_type: TYPE_FP32 dims: [2] }\n'
        'output [ { name: "OUT" data_type: TYPE_INT32 dims: [1] }, { name: "COMPANY" data_type: TYPE_STRING dims: [1] },\n'
        '  { name: "FLAGS" data_type: TYPE_INT32 dims: [1] } ]\n'
        f"sequence_batching {{ iterative_sequence: true {section} }}\n"
        f"model_transaction_policy {{ decoupled: {str(decoupled).lower()} }}\n{more}",
    )
