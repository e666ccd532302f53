"""From numpy arrays to a request in shared memory, and from a response back to arrays, for the embedded server."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import msgspec
import numpy as np

from ..shm import bytes_codec
from ..shm.dtype import BF16, BY_NUMPY, BYTES, DataType
from ..shm.errors import OutOfSharedMemory
from .errors import InvalidArgument, ServerError
from .parameters import EXPECTS, MAX_UNSIGNED, Expected, RequestParameters
from .request import Outcome, Output, Request
from .servable import Servable
from .slabs import request_at
from .validation import GivenInput, Layout, lay_out, output_indices

COPIED_BYTES = 16 << 10
"""Outputs of a response up to this size are copied out of shared memory; larger ones are views of it."""

Parameters = Mapping[str, Union[bool, int, float, str]]


class InferResult(Dict[str, np.ndarray]):
    """Outputs by name. Also says which version answered, and the response's parameters."""

    def __init__(self, model_name: str, model_version: int, parameters: Dict[str, Any]) -> None:
        super().__init__()
        self.model_name = model_name
        self.model_version = model_version
        self.parameters = parameters


def to_request(
    model: Servable,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    request_id: str,
    parameters: Optional[Parameters],
    settle: Any,
) -> Request:
    """A request for a model, its inputs in shared memory; what it answers goes to ``settle``.

    Raises:
        InvalidArgument: the inputs or outputs are not those of the model.
        Unavailable: there is no room for the inputs.
    """
    given, datas = [], []
    for name, array in inputs.items():
        dtype, data = _wire_form(name, array, model)
        given.append(GivenInput(name, dtype.name, array.shape, len(data) if isinstance(data, bytes) else data.nbytes))
        datas.append(data)
    key = tuple(given)
    layout: Optional[Layout] = model.memo.get(key)
    if layout is None:
        layout = lay_out(model, given)
        model.remember(key, layout)
    indices = output_indices(model, outputs)
    told = _told(parameters) if parameters else None
    extras: Tuple[Any, ...] = ()
    if told is not None:
        extras = told.extras(request_id, indices)
    elif request_id or indices is not None:
        extras = (request_id, indices, "{}", 0, 0, 0)
    block = model.place(layout)
    try:
        for place, data in zip(layout.placements, datas):
            block.write(place.offset, data, place.nbytes)
    except OutOfSharedMemory as error:
        model.arena.dropped.append(block)
        raise model.no_room(error) from error
    request = request_at(block, layout, extras, settle)
    if told is not None:
        request.priority = told.priority
    if model.server.tracer.active:
        request.trace = model.server.tracer.sample(model.name)
    return request


def _wire_form(name: str, array: np.ndarray, model: Servable) -> Tuple[DataType, Any]:
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(f"input '{name}' of model '{model.name}' must be a numpy array, not {type(array).__name__}")
    dtype = BY_NUMPY.get(array.dtype)
    if dtype is BYTES or array.dtype.kind == "S":
        items = array.reshape(-1).tolist()
        return BYTES, bytes_codec.encode([i if isinstance(i, bytes) else str(i).encode() for i in items])
    if dtype is None:
        raise InvalidArgument(f"input '{name}' of model '{model.name}' has dtype {array.dtype}, which the protocol does not have")
    if array.dtype == np.uint16 and any(spec.name == name and spec.dtype is BF16 for spec in model.inputs):
        dtype = BF16
    return dtype, array if array.flags.c_contiguous else np.array(array, order="C")


def _told(parameters: Parameters) -> RequestParameters:
    """Those that have a meaning, as a client's, and those for the model.

    Raises:
        InvalidArgument: one that has a meaning is of a wrong type.
    """
    told = RequestParameters()
    for key, value in parameters.items():
        expected = EXPECTS.get(key)
        number = type(value) is int and 0 <= value <= MAX_UNSIGNED
        text = expected is Expected.UNSIGNED_OR_STRING and isinstance(value, str)
        if expected is not None and not (isinstance(value, bool) if expected is Expected.BOOL else number or text):
            raise InvalidArgument(f"parameter '{key}' must be a {expected.value}, not {value!r}")
        told.put(key, value)
    return told


def to_result(model: Servable, outcome: Outcome) -> InferResult:
    """The outputs of an outcome as arrays.

    Raises:
        ServerError: that is the outcome.
    """
    if isinstance(outcome, ServerError):
        raise outcome
    parameters = msgspec.json.decode(outcome.parameters) if outcome.parameters else {}
    result = InferResult(model.name, model.version, parameters)
    plan = outcome.plan
    if plan.nbytes <= COPIED_BYTES or any(output.dtype is BYTES for output in plan.outputs):
        for output in plan.outputs:
            result[output.name] = _array(output, outcome.copy(output))
        outcome.release()
    else:
        for output, view in zip(plan.outputs, outcome.views()):
            result[output.name] = _array(output, view)
    return result


def _array(output: Output, wire: Any) -> np.ndarray:
    if output.dtype is BYTES:
        items = bytes_codec.decode(wire)
        array = np.empty(len(items), object)
        array[:] = items
        return array.reshape(output.shape)
    # A bytearray, unlike bytes, makes an array that can be written to.
    buffer = bytearray(wire) if isinstance(wire, bytes) else wire
    return np.ndarray(output.shape, np.uint16 if output.dtype is BF16 else output.dtype.numpy, buffer)
