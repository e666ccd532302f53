"""``pb_utils.InferenceResponse`` (spec 1.6), and the parameters that requests and responses have in common."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Sequence, Union

from .error import TritonError, TritonModelException
from .tensor import Tensor

Parameters = Dict[str, Union[bool, int, str]]


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
            expect("InferenceResponse", "output_tensors", output_tensors, (list, tuple))
        tensor: Any
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                if tensor is None:
                    raise TritonModelException("Output tensor for inference response should not be empty.")
                raise TypeError(f"InferenceResponse: output_tensors must hold Tensor objects, not {type(tensor).__name__}")
        if error is not None:
            expect("InferenceResponse", "error", error, TritonError)
        self._output_tensors = list(output_tensors)
        self._error = error
        self._parameters = "{}" if parameters is None else parameters_text(parameters)

    def output_tensors(self) -> List[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    @classmethod
    def _received(cls, output_tensors: List[Tensor], error: Optional[TritonError], parameters: str) -> InferenceResponse:
        """A response as it came from another model."""
        response = cls.__new__(cls)
        response._output_tensors = output_tensors
        response._error = error
        response._parameters = parameters
        return response

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


def expect(where: str, what: str, value: Any, kind: Any) -> None:
    """Raises TypeError unless ``value`` is of that type, or of one of those."""
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise TypeError(f"{where}: {what} must be {wanted}, not {type(value).__name__}")
