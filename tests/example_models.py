"""The models that tritonclient's example programs ask, as text: same names, tensors and meaning."""

from __future__ import annotations

from pathlib import Path

from model_repository import ECHO, write_model

ADD_SUB = '''
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """OUTPUT0 is INPUT0 + INPUT1, OUTPUT1 is INPUT0 - INPUT1; strings are numbers in decimal."""

    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.outputs(request)) for request in requests]

    def outputs(self, request):
        a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1"))
        if a.dtype != object:
            found = a + b, a - b
        else:
            a, b = a.astype(int), b.astype(int)
            found = (a + b).astype(str).astype(object), (a - b).astype(str).astype(object)
        return [pb_utils.Tensor(f"OUTPUT{i}", array) for i, array in enumerate(found)]
'''

ADD_SUB_CONFIG = """
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_%(type)s dims: [16] }, { name: "INPUT1" data_type: TYPE_%(type)s dims: [16] } ]
output [ { name: "OUTPUT0" data_type: TYPE_%(type)s dims: [16] }, { name: "OUTPUT1" data_type: TYPE_%(type)s dims: [16] } ]
"""

IDENTITY_CONFIG = """
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_STRING dims: [-1] }
output { name: "OUTPUT0" data_type: TYPE_STRING dims: [-1] }
"""

SEQUENCE = '''
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """OUTPUT is the sum of a sequence so far. Sequences are kept apart by the model itself, for nothing here batches them."""

    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", self.add(request))]) for request in requests]

    def add(self, request):
        key, flags = request.correlation_id(), request.flags()
        if flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.sums[key] = np.zeros((1, 1), np.int32)
        self.sums[key] = self.sums[key] + request.inputs()[0].as_numpy()
        return self.sums.pop(key) if flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END else self.sums[key]
'''

SEQUENCE_CONFIG = """
max_batch_size: 8
input { name: "INPUT" data_type: TYPE_INT32 dims: [1] }
output { name: "OUTPUT" data_type: TYPE_INT32 dims: [1] }
"""

REPEAT = '''
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """A response for each element of IN, DELAY milliseconds after the one before; execute returns after WAIT milliseconds."""

    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            values, delays, wait = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY", "WAIT"))
            self.threads.append(threading.Thread(target=self.repeat, args=(request.get_response_sender(), values.copy(), delays.copy())))
            self.threads[-1].start()
            time.sleep(wait[0] / 1000)

    def repeat(self, sender, values, delays):
        for index, (value, delay) in enumerate(zip(values, delays)):
            time.sleep(delay / 1000)
            outputs = [pb_utils.Tensor("OUT", np.array([value])), pb_utils.Tensor("IDX", np.array([index], np.uint32))]
            sender.send(pb_utils.InferenceResponse(outputs))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
'''

REPEAT_CONFIG = """
model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [-1] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [-1] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [1] }
]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [1] }, { name: "IDX" data_type: TYPE_UINT32 dims: [1] } ]
"""

COLOURS = '''
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """The share of each colour in an image."""

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("PROB", self.shares(r.inputs()[0].as_numpy()))]) for r in requests]

    def shares(self, images):
        sums = images.sum(axis=(2, 3))
        return sums / sums.sum(axis=1, keepdims=True)
'''

COLOURS_CONFIG = """
max_batch_size: 8
input { name: "IMAGE" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 4, 4] }
output { name: "PROB" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }
"""


def write_examples(root: Path) -> None:
    """A repository of them: simple, simple_int8, simple_string, simple_identity, simple_sequence, repeat_int32 and colours."""
    for name, datatype in (("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "STRING")):
        write_model(root, name, ADD_SUB, ADD_SUB_CONFIG % {"type": datatype})
    write_model(root, "simple_identity", ECHO, IDENTITY_CONFIG)
    write_model(root, "simple_sequence", SEQUENCE, SEQUENCE_CONFIG)
    write_model(root, "repeat_int32", REPEAT, REPEAT_CONFIG)
    write_model(root, "colours", COLOURS, COLOURS_CONFIG)
    (root / "colours" / "labels.txt").write_text("red\ngreen\nblue\n")
