"""The answer to an inference over HTTP, apart from any socket: from a response to body pieces (spec 6.4). Large outputs stay where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import msgspec

from ...shm.dtype import BYTES
from ...shm.message import IN_REGION
from .. import classification
from ..errors import InvalidArgument
from ..request import Output, Response
from . import json_tensor
from .infer_header import InferHeader

if TYPE_CHECKING:
    from ..servable import Servable

SMALL_BYTES = 16 << 10
"""Outputs up to this size are copied into one piece with the JSON, which is cheaper than handing each to the socket."""

_PREPARED = 8
_SORTED_BYTES = 64 << 10


class Encoded(NamedTuple):
    """A response body: its pieces in order, their sum, and the length of the JSON part when binary data follows it."""

    pieces: List[Any]
    nbytes: int
    json_bytes: Optional[int]


def takes_long(header: InferHeader, response: Response) -> bool:
    """Whether ``encode`` is work for another thread: sorting a million elements would keep the loop from everything else."""
    return header.classified and response.plan.nbytes > _SORTED_BYTES


def encode(model: Servable, header: InferHeader, response: Response) -> Encoded:
    """The body of a response, which is released, or will be when the last piece is dropped.

    Raises:
        InvalidArgument: an output has no JSON form. The response is released.
    """
    if header.classified:
        return _encode_classified(model, header, response)
    text, binary = (header.prepared.get(response.plan) if not response.parameters else None) or _prepare(model, header, response)
    nbytes = response.plan.nbytes
    if nbytes > SMALL_BYTES and binary:
        views = {output.name: view for output, view in zip(response.plan.outputs, response.views())}
        pieces = [text, *[memoryview(views[output.name]) for output in binary if output.nbytes]]
        nbytes = sum([output.nbytes for output in binary])
    else:
        pieces = [b"".join([text, *map(response.copy, binary)])]
        nbytes = len(pieces[0]) - len(text)
        response.release()
    return Encoded(pieces, len(text) + nbytes, len(text) if nbytes else None)


def _prepare(model: Servable, header: InferHeader, response: Response) -> Tuple[bytes, List[Output]]:
    """The JSON part and the outputs that follow it. All-binary ones depend only on the header and the plan, and are remembered."""
    plan = response.plan
    outputs = _as_requested(header, plan.outputs)
    binary = [output for output in outputs if header.wants_binary(output.name)]
    try:
        prepared = _head(model, header, response.parameters, outputs, response.copy), binary
    except InvalidArgument:
        response.release()
        raise
    if len(binary) == len(outputs) and not response.parameters and len(header.prepared) < _PREPARED:
        header.prepared[plan] = prepared
    return prepared


def _encode_classified(model: Servable, header: InferHeader, response: Response) -> Encoded:
    """``encode`` where classes stand in place of some outputs; in one piece, for they are few."""
    assert header.outputs is not None
    outputs: List[Output] = []
    wires: Dict[str, bytes] = {}
    try:
        for output in _as_requested(header, response.plan.outputs):
            wire, classes = response.copy(output), header.outputs[output.name].classes
            if classes:
                labels = model.labels.get(output.name, ())
                wire, shape = classification.classify(wire, output.dtype, output.shape, model.max_batch_size > 0, classes, labels)
                output = output._replace(dtype=BYTES, shape=shape, nbytes=len(wire))
            outputs.append(output)
            wires[output.name] = wire
        text = _head(model, header, response.parameters, outputs, lambda output: wires[output.name])
    finally:
        response.release()
    data = b"".join([text, *(wires[output.name] for output in outputs if header.wants_binary(output.name))])
    return Encoded([data], len(data), len(text) if len(data) > len(text) else None)


def _as_requested(header: InferHeader, outputs: List[Output]) -> List[Output]:
    """In the order in which the client named them."""
    if header.outputs is None or len(outputs) < 2:
        return outputs
    place = {name: i for i, name in enumerate(header.outputs)}
    return sorted(outputs, key=lambda output: place[output.name])


def _head(model: Servable, header: InferHeader, parameters: str, outputs: List[Output], copy: Callable[[Output], bytes]) -> bytes:
    parts = []
    for output in outputs:
        start = msgspec.json.encode({"name": output.name, "datatype": output.dtype.name, "shape": output.shape})[:-1]
        if output.block == IN_REGION:
            parts.append(start + b"}")
        elif header.wants_binary(output.name):
            parts.append(start + b',"parameters":{"binary_data_size":%d}}' % output.nbytes)
        else:
            parts.append(start + b',"data":' + json_tensor.decode_output(output.name, copy(output), output.dtype) + b"}")
    about: Dict[str, Any] = {"id": header.request_id} if header.request_id else {}
    about["model_name"] = model.name
    about["model_version"] = str(model.version)
    text = msgspec.json.encode(about)[:-1]
    if parameters:
        text += b',"parameters":' + parameters.encode()
    return text + b',"outputs":[' + b",".join(parts) + b"]}"
