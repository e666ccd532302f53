"""What ``import c_python_backend_utils`` gives a model: the module within Triton's stub, with the classes that pb_utils does not name
(spec 1.1)."""

from __future__ import annotations

from .error import TritonError, TritonModelException
from .host import host
from .logger import Logger
from .metrics import Metric, MetricFamily, MetricKind
from .model_control import is_model_ready, load_model, unload_model
from .preferred_memory import TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU, MemoryType, PreferredMemory
from .request import InferenceRequest
from .response import InferenceResponse
from .response_iterator import ResponseIterator
from .response_sender import InferenceResponseSender
from .tensor import Tensor
from .trace import InferenceTrace

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "PreferredMemory",
    "ResponseIterator",
    "SharedMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "is_model_ready",
    "load_model",
    "shared_memory",
    "unload_model",
]


class SharedMemory:
    """The shared memory of this instance."""

    def free_memory(self) -> int:
        """Bytes that are free in it for outputs; more is asked for when it is full."""
        return host.free_memory()


shared_memory = SharedMemory()
"""That of this process."""
