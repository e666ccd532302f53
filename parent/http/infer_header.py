"""The JSON part of an inference over HTTP: parsed, checked and laid out (spec 6.4).

For binary inputs it depends on nothing but the model and its own bytes, which clients repeat, so it is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from ...shm.dtype import BY_NAME, BYTES
from ..client_memory import RegionSlice
from ..errors import InvalidArgument
from ..parameters import Extras, RequestParameters
from ..request import Output, OutputPlan
from ..validation import GivenInput, Layout, Placement, lay_out, output_indices
from . import json_tensor
from .json_document import boolean, member, not_a, parameters_of, put_parameter, unsigned

if TYPE_CHECKING:
    from ..servable import Servable

_REMEMBERED_BYTES = 4096
_SOURCES = ("data", "binary_data_size", "shared_memory_region")


class RequestedOutput(NamedTuple):
    """How the client wants one output; ``classes``: that many of its best elements instead of it, 0 for itself; ``place``: where in its
    shared memory, None for the response."""

    binary: bool
    classes: int = 0
    place: Optional[RegionSlice] = None


class InferHeader:
    """The JSON part of a request, parsed, checked and laid out.

    ``layout``: where the inputs go. ``literals``: (offset, bytes) of inputs given in the JSON itself. ``binary``: the inputs whose bytes
    follow, in order, ``binary_bytes`` in all. ``extras``: as a message has them. ``outputs``: None for all of them, as
    ``default_binary`` says. ``classified``: of some, classes are wanted. ``prepared``: what was worked out for responses to it.
    ``writes``: the outputs that go to regions of the client's, with their indices in the configuration. ``priority``: 0 for none.
    """

    __slots__ = (
        "binary", "binary_bytes", "classified", "default_binary", "extras", "layout", "literals", "outputs", "prepared", "priority", "request_id",
        "strings", "writes",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        layout: Layout,
        literals: Sequence[Tuple[int, Union[bytes, bytearray]]],
        binary: Sequence[Placement],
        extras: Extras,
        outputs: Optional[Dict[str, RequestedOutput]],
        default_binary: bool,
        writes: Sequence[Tuple[int, RegionSlice]] = (),
        priority: int = 0,
    ) -> None:
        self.request_id = request_id
        self.layout = layout
        self.literals = literals
        self.binary = binary
        self.binary_bytes = sum(place.nbytes for place in binary)
        self.strings = [place for place in layout.placements if place.spec.dtype is BYTES and not place.in_region]
        self.extras = extras
        self.outputs = outputs
        self.classified = any(output.classes for output in outputs.values()) if outputs else False
        self.default_binary = default_binary
        self.writes = writes
        self.priority = priority
        self.prepared: Dict[OutputPlan, Tuple[bytes, List[Output]]] = {}

    def wants_binary(self, name: str) -> bool:
        if self.outputs is not None and name in self.outputs:
            return self.outputs[name].binary
        return self.default_binary


def remembered_header(model: Servable, data: bytes) -> InferHeader:
    """What ``parse_header`` says of ``data``, parsed only once where that is possible."""
    header: Optional[InferHeader] = model.memo.get(data)
    if header is None:
        header = parse_header(model, data)
        if len(data) <= _REMEMBERED_BYTES and not header.literals:
            model.remember(data, header)
    return header


def parse_header(model: Servable, data: Union[bytes, bytearray]) -> InferHeader:
    """Parses, checks and lays out the JSON part of a request.

    Raises:
        InvalidArgument: what is wrong, in Triton's words.
        Unsupported: it asks for something this server does not have.
    """
    document = json_tensor.decode_document(data)
    request_id = member(document, "id", str, "string", "")
    default_binary, parameters = _parse_parameters(document)
    inputs = member(document, "inputs", list, "array")
    given: List[GivenInput] = []
    texts: List[Optional[bytes]] = []
    for one in inputs:
        source, text = _parse_input(model, one)
        given.append(source)
        texts.append(text)
    layout = lay_out(model, given)
    literals = [(place.offset, text) for place, text in zip(layout.placements, texts) if text is not None]
    binary = [place for place, text in zip(layout.placements, texts) if text is None and not place.in_region]
    outputs = _parse_outputs(model, document, default_binary)
    indices = output_indices(model, [name for name, _ in outputs])
    extras = parameters.extras(request_id, indices)
    writes = [(index, output.place) for index, (_, output) in zip(indices or (), outputs) if output.place is not None]
    return InferHeader(request_id, layout, literals, binary, extras, dict(outputs) or None, default_binary, writes, parameters.priority)


def _parse_input(model: Servable, one: Any) -> Tuple[GivenInput, Optional[bytes]]:
    """An input, and its bytes if they are in the JSON."""
    name = member(one, "name", str, "string")
    shape = _parse_shape(member(one, "shape", list, "array"))
    datatype = member(one, "datatype", str, "string")
    dtype = BY_NAME.get(datatype)
    if dtype is None:
        raise InvalidArgument(f"invalid datatype for input {name}")
    parameters = parameters_of(one)
    present = [key for key in _SOURCES if key in (one if key == "data" else parameters)]
    if len(present) != 1:
        found = "no field is set" if not present else "set " + " ".join(f"'{key}'" for key in present)
        raise InvalidArgument(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
            f"'shared_memory_region' in 'parameters'. But {found}"
        )
    if present[0] == "data":
        spec = next((s for s in model.inputs if s.name == name), None)
        # Of a wrong name or type lay_out will say so; only its elements must not be looked at then.
        text = json_tensor.encode_input(name, one["data"], dtype, shape) if spec and spec.dtype is dtype else b""
        return GivenInput(name, datatype, shape, len(text)), text
    if present[0] == "binary_data_size":
        return GivenInput(name, datatype, shape, unsigned(parameters, "binary_data_size")), None
    place = _parse_region(model, parameters)
    return GivenInput(name, datatype, shape, place.nbytes, place), None


def _parse_region(model: Servable, parameters: Dict[str, Any]) -> RegionSlice:
    """Where in shared memory of the client's a tensor lies, or is to go."""
    region = member(parameters, "shared_memory_region", str, "string")
    offset = unsigned(parameters, "shared_memory_offset") if "shared_memory_offset" in parameters else 0
    sized = "shared_memory_byte_size" in parameters
    place = RegionSlice(region, offset, unsigned(parameters, "shared_memory_byte_size") if sized else 0)
    model.server.client_memory.check(place)
    if not sized:
        raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{region}'")
    return place


def _parse_shape(shape: List[Any]) -> Tuple[int, ...]:
    if any(type(dim) is not int or dim < 0 for dim in shape):
        raise InvalidArgument(f"Unable to parse 'shape': {not_a('unsigned-integer')}")
    return tuple(shape)


def _parse_parameters(document: Any) -> Tuple[bool, RequestParameters]:
    """Of the request as a whole: whether outputs are binary by default, and what is not the codec's own."""
    default_binary, parameters = False, RequestParameters()
    given = parameters_of(document)
    for key in given:
        if key == "binary_data_output":
            default_binary = boolean(given, key)
        else:
            put_parameter(parameters, given, key)
    return default_binary, parameters


def _parse_outputs(model: Servable, document: Any, default_binary: bool) -> List[Tuple[str, RequestedOutput]]:
    outputs = []
    for one in member(document, "outputs", list, "array", []):
        name = member(one, "name", str, "string")
        parameters = parameters_of(one)
        if "shared_memory_region" in parameters:
            if "classification" in parameters and unsigned(parameters, "classification", "set"):
                raise InvalidArgument("Output can't set both 'shared_memory_region' and 'classification'")
            if "binary_data" in parameters and boolean(parameters, "binary_data"):
                raise InvalidArgument("Output can't set both 'shared_memory_region' and 'binary_data'")
            outputs.append((name, RequestedOutput(False, place=_parse_region(model, parameters))))
            continue
        classes = unsigned(parameters, "classification", "set") if "classification" in parameters else 0
        binary = boolean(parameters, "binary_data") if "binary_data" in parameters else default_binary
        outputs.append((name, RequestedOutput(binary, classes)))
    return outputs
