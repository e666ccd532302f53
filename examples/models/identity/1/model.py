"""Sends every input back as it came, whatever its size and data type, over DLPack.

A `pb_utils.Tensor` exports itself by DLPack, so `Tensor.from_dlpack` takes one directly: the output refers to the
memory of the input and the model copies nothing. It is also the way to handle BF16, which NumPy lacks (`as_numpy`
raises for it). DLPack in turn knows no strings; BYTES tensors go through NumPy, as arrays of `bytes` objects.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


def echo(tensor: pb_utils.Tensor) -> pb_utils.Tensor:
    datatype = tensor.name().removeprefix("INPUT_")
    if datatype == "BYTES":
        return pb_utils.Tensor("OUTPUT_BYTES", tensor.as_numpy())
    return pb_utils.Tensor.from_dlpack(f"OUTPUT_{datatype}", tensor)


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        # An optional input that the client left out is not in inputs().
        return [pb_utils.InferenceResponse([echo(tensor) for tensor in request.inputs()]) for request in requests]
