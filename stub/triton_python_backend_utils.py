"""What ``import triton_python_backend_utils as pb_utils`` gives a model (spec section 1)."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from ..shm import bytes_codec
from ..shm.dtype import BY_CODE, BY_NUMPY, BYTES, DATA_TYPES
from .batch import batch, split
from .error import TritonError, TritonModelException
from .host import host
from .logger import Logger
from .metrics import MetricFamily
from .model_config import ModelConfig
from .model_control import is_model_ready, load_model, unload_model
from .preferred_memory import TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU, PreferredMemory
from .request import InferenceRequest
from .response import InferenceResponse
from .tensor import Tensor, as_items, empty

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "batch",
    "deserialize_bytes_tensor",
    "empty",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "split",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2

TRITON_STRING_TO_NUMPY: Dict[str, Any] = {
    t.config_name: t.numpy.type for t in DATA_TYPES if t.numpy is not None
}  # BF16 is not in it, as in Triton
TRITON_STRING_TO_NUMPY["TYPE_BOOL"] = bool


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of a name such as "TYPE_FP32".

    Raises:
        KeyError: unknown name, or TYPE_BF16, which numpy does not have.
    """
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Optional[Any]:
    """The numpy scalar type of Triton's number for a data type; None for BF16 (14) and unknown numbers."""
    found = BY_CODE.get(data_type)
    return None if found is None or found.numpy is None else found.numpy.type


def numpy_to_triton_type(data_type: Any) -> Optional[int]:
    """Triton's number for a numpy dtype or scalar type; ``np.object_`` and ``np.bytes_`` give 13 (BYTES), unknown ones None."""
    if data_type is None:  # for numpy it means float64
        return None
    try:
        dtype = np.dtype(data_type)
    except TypeError:
        return None
    if dtype.kind == "S":
        return BYTES.code
    found = BY_NUMPY.get(dtype)
    return None if found is None else found.code


def serialize_byte_tensor(input_tensor: np.ndarray) -> Union[bytes, Tuple[()], None]:
    """The wire form of a BYTES array: for each element in C order, 4 bytes of length and the bytes.

    Returns:
        ``()`` for an array without elements, None for a dtype other than object and bytes.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return bytes_codec.encode(as_items(input_tensor))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> np.ndarray:
    """The elements of a wire form, as an object array of ``bytes`` [n].

    Raises:
        struct.error: the input ends within an element.
    """
    try:
        items = bytes_codec.decode(encoded_tensor)
    except bytes_codec.BytesError as error:
        raise struct.error(str(error)) from error
    array = np.empty(len(items), object)
    array[:] = items
    return array


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Optional[Tensor]:
    """The input of that name, or None."""
    for tensor in inference_request.inputs():
        if tensor._name == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Optional[Tensor]:
    """The output of that name, or None."""
    for tensor in inference_response.output_tensors():
        if tensor._name == name:
            return tensor
    return None


def get_input_config_by_name(model_config: Dict[str, Any], name: str) -> Optional[Dict[str, Any]]:
    """The entry of that input in a parsed configuration (``json.loads(args["model_config"])``), or None."""
    return _by_name(model_config.get("input", []), name)


def get_output_config_by_name(model_config: Dict[str, Any], name: str) -> Optional[Dict[str, Any]]:
    """The entry of that output in a parsed configuration, or None."""
    return _by_name(model_config.get("output", []), name)


def _by_name(entries: List[Dict[str, Any]], name: str) -> Optional[Dict[str, Any]]:
    for entry in entries:
        if entry["name"] == name:
            return entry
    return None


def using_decoupled_model_transaction_policy(model_config: Dict[str, Any]) -> bool:
    """Whether a parsed configuration is that of a decoupled model."""
    policy = model_config.get("model_transaction_policy")
    return bool(policy["decoupled"]) if policy else False


def get_model_dir() -> str:
    """The directory of the model file: ``<repository>/<model>/<version>``."""
    return host.model_dir
