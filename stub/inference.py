"""``pb_utils.InferenceRequest`` and ``pb_utils.InferenceResponse`` (spec 1.5 and 1.6)."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Sequence, Set, Union

from .error import TritonError, TritonModelException
from .tensor import Tensor

Parameters = Dict[str, Union[bool, int, str]]


class InferenceRequest:
    """One request of a client, or one that a model makes.

    Args:
        request_id: echoed in the response.
        correlation_id: of the sequence the request belongs to; an unsigned 64-bit integer or a str.
        inputs: the input tensors. Required.
        requested_output_names: the outputs wanted; an empty list means all. Required.
        model_name: the model to ask. Required.
        model_version: -1 lets the server choose.
        flags: TRITONSERVER_REQUEST_FLAG_SEQUENCE_START and _END.
        timeout: microseconds, 0 for none.
        parameters: values of type bool, int or str.

    Raises:
        TypeError: an argument of a wrong Python type, or None.
        TritonModelException: an empty tensor or name in a list, or parameters of a wrong type.
    """

    __slots__ = (
        "_correlation_id", "_flags", "_inputs", "_model_name", "_model_version", "_parameters", "_request_id", "_requested", "_timeout",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str = "",
        correlation_id: Union[int, str] = 0,
        inputs: Optional[Sequence[Tensor]] = None,
        requested_output_names: Optional[Sequence[str]] = None,
        model_name: Optional[str] = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        parameters: Optional[Parameters] = None,
    ) -> None:
        _expect("InferenceRequest", "request_id", request_id, str)
        _expect("InferenceRequest", "model_name", model_name, str)
        for what, number in (("model_version", model_version), ("flags", flags), ("timeout", timeout)):
            _expect("InferenceRequest", what, number, int)
        _expect("InferenceRequest", "inputs", inputs, (list, tuple))
        _expect("InferenceRequest", "requested_output_names", requested_output_names, (list, tuple))
        assert inputs is not None and requested_output_names is not None and model_name is not None
        if correlation_id is None:
            raise TypeError("InferenceRequest: correlation_id must not be None")
        if not isinstance(correlation_id, (int, str)):
            raise TritonModelException("Correlation ID must be integer or string")
        about = f"for request with id '{request_id}' and model name '{model_name}'"
        for tensor in inputs:
            if tensor is None:
                raise TritonModelException(f"Input tensor {about} should not be empty.")
            _expect("InferenceRequest", "inputs", tensor, Tensor)
        for name in requested_output_names:
            _expect("InferenceRequest", "requested_output_names", name, str)
            if not name:
                raise TritonModelException(f"Requested output name {about} should not be empty.")
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._requested = set(requested_output_names)
        self._model_name = model_name
        self._model_version = model_version
        self._flags = flags
        self._timeout = timeout
        self._parameters = parameters_text(parameters)

    @classmethod
    def _received(
        cls,
        inputs: List[Tensor],
        requested: Set[str],
        request_id: str = "",
        parameters: str = "{}",
        correlation_id: Union[int, str] = 0,
        flags: int = 0,
        timeout: int = 0,
    ) -> InferenceRequest:
        """A request as it came from the server, which has checked it."""
        request = cls.__new__(cls)
        request._inputs = inputs
        request._request_id = request_id
        request._requested = requested
        request._parameters = parameters
        request._correlation_id = correlation_id
        request._flags = flags
        request._timeout = timeout
        return request

    def inputs(self) -> List[Tensor]:
        """The inputs that are present, in the order of the configuration."""
        return self._inputs

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> Union[int, str]:
        return self._correlation_id

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        _expect("InferenceRequest", "flags", flags, int)
        self._flags = flags

    def timeout(self) -> int:
        """The client's timeout in microseconds, 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """The request's parameters as JSON **text**, "{}" when there are none."""
        return self._parameters

    def requested_output_names(self) -> Set[str]:
        """The outputs that the client asked for; all outputs of the model when it asked for none. The set is the caller's own."""
        return set(self._requested)


class InferenceResponse:
    """The answer to one request.

    Args:
        output_tensors: the outputs; those that the client did not ask for are dropped.
        error: fails the request with this error; tensors and parameters are then ignored.
        parameters: for the client; values of type bool, int or str.

    Raises:
        TypeError: an argument of a wrong Python type, or None for the tensors.
        TritonModelException: None among the tensors, or parameters of a wrong type.
    """

    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: Optional[TritonError] = None,
        parameters: Optional[Parameters] = None,
    ) -> None:
        if type(output_tensors) is not list:
            _expect("InferenceResponse", "output_tensors", output_tensors, (list, tuple))
        tensor: Any
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                if tensor is None:
                    raise TritonModelException("Output tensor for inference response should not be empty.")
                raise TypeError(f"InferenceResponse: output_tensors must hold Tensor objects, not {type(tensor).__name__}")
        if error is not None:
            _expect("InferenceResponse", "error", error, TritonError)
        self._output_tensors = list(output_tensors)
        self._error = error
        self._parameters = "{}" if parameters is None else parameters_text(parameters)

    def output_tensors(self) -> List[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Optional[TritonError]:
        return self._error

    def parameters(self) -> str:
        """The response's parameters as JSON **text**."""
        return self._parameters


def parameters_text(parameters: Optional[Parameters]) -> str:
    """Checks the parameters that a model gives and returns them as JSON text (spec 1.5).

    Raises:
        TritonModelException: not a dict, or a key or value of a wrong type.
    """
    if parameters is None:
        return "{}"
    if not isinstance(parameters, dict):
        raise TritonModelException(f"Expect {dict}, got {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, str)):
            raise TritonModelException(f"Expect parameters values to have type bool/int/str, found type {type(value)}")
    return json.dumps(parameters)


def _expect(where: str, what: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise TypeError(f"{where}: {what} must be {wanted}, not {type(value).__name__}")
