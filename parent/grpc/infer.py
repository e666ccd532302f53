"""An inference over gRPC, apart from any connection: from the bytes of a ``ModelInferRequest`` to a request, from a response to the bytes
of a ``ModelInferResponse`` (spec 6.7).

Everything but the id and the tensors is a request's head. Clients repeat it, so what it means, and how a response to it begins, is worked
out once; a tensor is copied once on its way in, and once on its way out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from google.protobuf.message import DecodeError

from ...shm import bytes_codec
from ...shm.arena import Block
from ...shm.dtype import BY_NAME, BYTES
from ...shm.errors import OutOfSharedMemory
from ...shm.message import IN_REGION
from .. import classification
from ..client_memory import RegionSlice
from ..core import Core, version_number
from ..errors import InternalError, InvalidArgument
from ..parameters import RequestParameters
from ..request import Outcome, Output, OutputPlan, Request, Response
from ..servable import Servable
from ..slabs import request_at
from ..validation import GivenInput, check_strings, lay_out, output_indices
from .messages import pb
from .parameters import classes_of, read_parameters, region_slice, wants_empty_final
from .wire import InferRequestParts, prefix, split

if TYPE_CHECKING:
    from google.protobuf.message import Message

_SMALL_BYTES = 64 << 10
"""Up to this size protobuf takes a whole message apart sooner than ``grpc_wire`` does."""

_REMEMBERED = 1024
_REMEMBERED_BYTES = 4096
_PREPARED = 8
_ID, _RAW_OUTPUT_CONTENTS = 3, 6

_INVALID = "<invalid>"
"""What errors call a data type that is none."""

_CONTENTS = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT32", "INT8", "INT16"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT32", "UINT8", "UINT16"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": ("BYTES",),
}
"""The fields of ``InferTensorContents`` and the data types that each can hold, first the one that errors call it by."""

Source = Union[int, bytes, None]
"""Of an input: the number of its contents, or the bytes that the head had for it; None if they are in a region of the client's."""

Pieces = Tuple[bytes, List[Tuple[bytes, Output]]]
"""How a response begins; what stands before each of its tensors."""


class Head(NamedTuple):
    """What a head says. ``message``: a ``ModelInferRequest``. ``empty_final``: a final response without outputs is wanted, too."""

    name: str
    version: Optional[int]
    message: Any
    parameters: RequestParameters
    empty_final: bool


class Plan:
    """What a head, with contents of certain sizes, means to a model.

    ``order``: place of each requested output. ``classes``: of the outputs that are to be classified, how many. ``writes``: where in
    regions of the client's outputs go. ``prepared``: of responses.
    """

    __slots__ = (
        "_parameters",
        "classes",
        "extras",
        "indices",
        "layout",
        "model",
        "order",
        "prepared",
        "priority",
        "sources",
        "strings",
        "writes",
    )

    def __init__(self, model: Servable, head: Head, sizes: Sequence[int]) -> None:
        """Raises:
        InvalidArgument: the request is wrong; the text says why.
        """
        self.model = model
        given: List[GivenInput] = []
        self.sources: List[Source] = []
        number = 0
        for tensor in head.message.inputs:
            one, source = _given(model, tensor, number, sizes)
            number += type(source) is int
            given.append(one)
            self.sources.append(source)
        self.layout = lay_out(model, given)
        self.strings = [place for place in self.layout.placements if place.spec.dtype is BYTES and not place.in_region]
        names = list(dict.fromkeys([output.name for output in head.message.outputs]))
        self.indices = output_indices(model, names)
        self.order = {name: place for place, name in enumerate(names)}
        self.classes: Dict[str, int] = {}
        self.writes: List[Tuple[int, RegionSlice]] = []
        for output in head.message.outputs:
            self._add_output(output)
        self._parameters = head.parameters
        self.priority = head.parameters.priority
        self.extras = head.parameters.extras("", self.indices)
        self.prepared: Dict[OutputPlan, Pieces] = {}

    def extras_with(self, request_id: str) -> Tuple[Any, ...]:
        """As a message has them."""
        return self._parameters.extras(request_id, self.indices)

    def _add_output(self, output: Any) -> None:
        where = region_slice(output.parameters, output.name)
        classes = classes_of(output.parameters)
        if where is not None and classes:
            raise InvalidArgument("output can't set both 'shared_memory_region' and 'classification'")
        if classes:
            self.classes[output.name] = classes
        if where is not None:
            index = next(i for i, spec in enumerate(self.model.outputs) if spec.name == output.name)
            self.writes.append((index, where))


def _given(model: Servable, tensor: Any, number: int, sizes: Sequence[int]) -> Tuple[GivenInput, Source]:
    """An input, whose contents are those of that number if they are apart."""
    name, shape = tensor.name, tuple(tensor.shape)
    datatype = tensor.datatype if tensor.datatype in BY_NAME else _INVALID
    if any(dim < 0 for dim in shape):
        dims = ",".join(map(str, shape))
        raise InvalidArgument(f"All input dimensions should be specified for input '{name}' for model '{model.name}', got [{dims}]")
    where = region_slice(tensor.parameters, name)
    has_contents = tensor.HasField("contents")
    if where is not None:
        if has_contents:
            raise InvalidArgument(
                f"unexpected 'content' provided when using shared memory for input tensor '{name}' for model '{model.name}'"
            )
        return GivenInput(name, datatype, shape, where.nbytes, where), None
    if has_contents and sizes:
        raise InvalidArgument(f"contents field must not be specified when using raw_input_contents for '{name}' for model '{model.name}'")
    if has_contents:
        wire = _typed_contents(model, tensor)
        return GivenInput(name, datatype, shape, len(wire)), wire
    if number >= len(sizes):
        raise InvalidArgument(f"unable to find data for input tensor '{name}' for model '{model.name}' in request.")
    return GivenInput(name, datatype, shape, sizes[number]), number


def _typed_contents(model: Servable, tensor: Any) -> bytes:
    """The wire form of ``contents``."""
    wire = b""
    for field, datatypes in _CONTENTS.items():
        values = getattr(tensor.contents, field)
        if not len(values):
            continue
        unexpected = f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model.name}'"
        if wire:
            raise InvalidArgument(f"{unexpected}, binary data was already supplied.")
        if tensor.datatype not in datatypes:
            datatype = tensor.datatype if tensor.datatype in BY_NAME else _INVALID
            raise InvalidArgument(f"{unexpected} of type '{datatypes[0]}', expected datatype '{datatype}'")
        if field == "bytes_contents":
            wire = bytes_codec.encode(values)
        else:
            # A number that does not fit is cut off, as a C++ cast does it.
            wire = np.array(values, BY_NAME[datatypes[0]].numpy).astype(BY_NAME[tensor.datatype].numpy).tobytes()
    return wire


class GrpcCodec:
    """Takes requests apart and puts responses together. May be used in any thread."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._heads: Dict[bytes, Head] = {}

    def head(self, parts: InferRequestParts) -> Head:
        """Raises:
        InternalError: it is not the head of a ``ModelInferRequest``.
        InvalidArgument: something is wrong whatever the model is.
        """
        head = self._heads.get(parts.head)
        if head is None:
            message = _parse(parts.head)
            version = version_number(message.model_version)
            parameters = read_parameters(message.parameters)
            head = Head(message.model_name, version, message, parameters, wants_empty_final(message.parameters))
            if len(parts.head) <= _REMEMBERED_BYTES:
                if len(self._heads) >= _REMEMBERED:
                    self._heads = {}
                self._heads[parts.head] = head
        return head

    def plan(self, model: Servable, head: Head, parts: InferRequestParts) -> Plan:
        """Raises:
        InvalidArgument: the request is wrong; the text says why.
        """
        sizes = tuple([len(content) for content in parts.contents])
        key = parts.head, sizes
        plan: Optional[Plan] = model.memo.get(key)
        if plan is None:
            plan = Plan(model, head, sizes)
            if len(parts.head) <= _REMEMBERED_BYTES:
                model.remember(key, plan)
        return plan

    def request(self, plan: Plan, parts: InferRequestParts, respond: Callable[[Optional[Outcome], bool], None]) -> Request:
        """The request, with its tensors in shared memory.

        Raises:
            ServerError: a tensor is malformed, a region is not there, or there is no room.
        """
        model, layout = plan.model, plan.layout
        extras = plan.extras_with(parts.request_id) if parts.request_id else plan.extras
        block = model.place(layout)
        try:
            for place, source in zip(layout.placements, plan.sources):
                if source is not None:
                    data = parts.contents[source] if type(source) is int else source
                    block.write(place.offset, data, place.nbytes)
            for place in plan.strings:
                assert isinstance(block, Block)
                start = block.offset + place.offset
                check_strings(model, place, memoryview(block.segment.memory)[start : start + place.nbytes])
            regions = self._core.client_memory.use(layout.slices, plan.writes) if layout.slices or plan.writes else None
        except BaseException as error:
            model.arena.dropped.append(block)
            if isinstance(error, OutOfSharedMemory):
                raise model.no_room(error) from error
            raise
        request = request_at(block, layout, extras, respond, regions)
        request.priority = plan.priority
        return request


def parts_of(message: bytes) -> InferRequestParts:
    """Takes a serialized ``ModelInferRequest`` apart.

    Raises:
        InternalError: it is not one.
    """
    parts = split(message) if len(message) > _SMALL_BYTES else None
    if parts is not None:
        return parts
    request = _parse(message)
    request_id, contents = request.id, list(request.raw_input_contents)
    request.ClearField("id")
    request.ClearField("raw_input_contents")
    return InferRequestParts(request.SerializeToString(), request_id, contents)


def encode(plan: Plan, request_id: str, response: Response, more: bytes = b"") -> List[Any]:
    """A serialized ``ModelInferResponse``, in pieces. Its outputs are still in shared memory: release the response when the pieces have
    been joined.

    Args:
        more: fields to be added, serialized.

    Raises:
        InvalidArgument: an output cannot be classified.
    """
    if plan.classes:
        start, tensors = _classified(plan, response)
        pieces: List[Any] = [start]
        for before, wire in tensors:
            pieces += (before, wire)
    else:
        start, outputs = plan.prepared.get(response.plan) or _prepare(plan, response.plan)
        pieces = [start]
        for before, output in outputs:
            pieces.append(before)
            if output.block != IN_REGION:
                segment, base = response.places[output.block]
                base += output.offset
                pieces.append(memoryview(segment.memory)[base : base + output.nbytes])
    if request_id:
        encoded = request_id.encode()
        pieces += (prefix(_ID, len(encoded)), encoded)
    if response.parameters:
        pieces.append(_parameters(response.parameters))
    pieces.append(more)
    return pieces


def encode_empty(model: Servable, request_id: str, more: bytes = b"") -> List[bytes]:
    """A ``ModelInferResponse`` without outputs, as ``encode`` has it."""
    start = pb.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request_id)
    return [start.SerializeToString(), more]


def _prepare(plan: Plan, outputs: OutputPlan) -> Pieces:
    ordered = _as_requested(plan, outputs)
    start = _start(plan.model, [(output, output.shape) for output in ordered])
    pieces = start, [(prefix(_RAW_OUTPUT_CONTENTS, 0 if output.block == IN_REGION else output.nbytes), output) for output in ordered]
    if len(plan.prepared) < _PREPARED:
        plan.prepared[outputs] = pieces
    return pieces


def _classified(plan: Plan, response: Response) -> Tuple[bytes, List[Tuple[bytes, bytes]]]:
    model = plan.model
    described, tensors = [], []
    for output in _as_requested(plan, response.plan):
        wire, classes = response.copy(output), plan.classes.get(output.name, 0)
        shape = output.shape
        if classes:
            labels = model.labels.get(output.name, ())
            wire, shape = classification.classify(wire, output.dtype, shape, model.max_batch_size > 0, classes, labels)
            output = output._replace(dtype=BYTES)
        described.append((output, shape))
        tensors.append((prefix(_RAW_OUTPUT_CONTENTS, len(wire)), wire))
    return _start(model, described), tensors


def _start(model: Servable, outputs: Sequence[Tuple[Output, Sequence[int]]]) -> bytes:
    message = pb.ModelInferResponse(model_name=model.name, model_version=str(model.version))
    for output, shape in outputs:
        message.outputs.add(name=output.name, datatype=output.dtype.name, shape=shape)
    return bytes(message.SerializeToString())


def _as_requested(plan: Plan, outputs: OutputPlan) -> List[Output]:
    """In the order of the request, if it names any."""
    if not plan.order:
        return outputs.outputs
    return sorted(outputs.outputs, key=lambda output: plan.order[output.name])


def _parameters(text: str) -> bytes:
    """The parameters of a response, from the JSON that the model's stub made of them."""
    message = pb.ModelInferResponse()
    for key, value in json.loads(text).items():
        parameter = message.parameters[key]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = value
    return bytes(message.SerializeToString())


def _parse(data: bytes) -> Any:
    try:
        message: Message = pb.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise InternalError("the message is not a ModelInferRequest") from error
    return message
