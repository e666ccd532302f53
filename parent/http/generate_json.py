"""The ``generate`` form of an inference, apart from any socket: flat JSON to a request, a response to flat JSON (spec 6.8).

Every member of the request that is named like an input is that tensor; every other one is a parameter for the model. There are no
shapes: they follow from the configuration and from how many elements there are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union

import msgspec

from ...shm.dtype import element_count
from ..errors import InvalidArgument
from ..model_config import TensorSpec
from ..parameters import Extras, RequestParameters
from ..request import Response
from ..validation import GivenInput, Layout, lay_out
from . import json_tensor
from .json_document import is_parameter, member, not_a, put_custom_parameter

if TYPE_CHECKING:
    from ..servable import Servable

_NESTED = "parameters"
_ID = "id"


class GenerateRequest(NamedTuple):
    """A request, checked and laid out: where its inputs go, their bytes in the same order, and the rest as a message has it."""

    request_id: str
    layout: Layout
    data: Sequence[bytes]
    extras: Extras
    priority: int


def parse(model: Servable, body: Union[bytes, bytearray], forwarded: Mapping[str, str]) -> GenerateRequest:
    """Parses and checks a body.

    Args:
        forwarded: parameters that came as headers; those of the body come before them.

    Raises:
        InvalidArgument: what is wrong, in Triton's words.
    """
    document = json_tensor.decode_document(body)
    if not isinstance(document, dict):
        raise InvalidArgument("attempt to get members for non-object")
    specs = {spec.name: spec for spec in model.inputs}
    reader = _Reader(specs)
    reader.parameters.custom.update(forwarded)
    reader.read(_members(body, document, specs))
    layout = lay_out(model, reader.given)
    request_id = "" if _ID in specs else member(document, _ID, str, "string", "")
    return GenerateRequest(request_id, layout, reader.data, reader.parameters.extras(request_id), reader.parameters.priority)


def encode(model: Servable, request_id: str, response: Response) -> bytes:
    """The JSON text of a response, which is released. Its members are in the order of their names.

    Raises:
        InvalidArgument: an output has no JSON form. The response is released too.
    """
    members: Dict[str, bytes] = {"model_name": msgspec.json.encode(model.name), "model_version": b'"%d"' % model.version}
    if request_id:
        members[_ID] = msgspec.json.encode(request_id)
    try:
        if response.parameters:
            parameters: Dict[str, Any] = json.loads(response.parameters)
            members.update((name, json.dumps(value).encode()) for name, value in parameters.items())
        for output in response.plan.outputs:
            text = json_tensor.decode_output(output.name, response.copy(output), output.dtype)
            members[output.name] = text[1:-1] if element_count(output.shape) == 1 else text
    finally:
        response.release()
    return b"{" + b",".join([msgspec.json.encode(name) + b":" + members[name] for name in sorted(members)]) + b"}"


def _members(body: Union[bytes, bytearray], document: Dict[str, Any], specs: Mapping[str, TensorSpec]) -> List[Tuple[str, Any]]:
    """The members of the document; an input that is there twice is so here."""
    if all(body.count(b'"%s"' % name.encode()) < 2 for name in specs):
        return list(document.items())
    pairs: List[Tuple[str, Any]] = []

    def remember(found: List[Tuple[str, Any]]) -> Dict[str, Any]:
        # The document itself is complete after all that is in it.
        pairs[:] = found
        return dict(found)

    try:
        json.loads(body.decode(), object_pairs_hook=remember)
    except RecursionError as error:
        raise InvalidArgument(f"JSON nesting depth exceeds maximum allowed limit of {json_tensor.MAX_NESTING}") from error
    return pairs


class _Reader:
    """Tells inputs from parameters."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = specs
        self.given: List[GivenInput] = []
        self.data: List[bytes] = []
        self.parameters = RequestParameters()

    def read(self, members: Sequence[Tuple[str, Any]]) -> None:
        for name, value in members:
            if name == _NESTED:
                self._read_nested(value)
            elif name != _ID or name in self._specs:
                self._read_one(name, value)

    def _read_nested(self, value: Any) -> None:
        if _NESTED in self._specs:
            raise InvalidArgument(f"Keyword '{_NESTED}' for nested schema also given as input tensor name")
        if not isinstance(value, dict):
            raise InvalidArgument(f"Expected JSON object for keyword: '{_NESTED}': {not_a('object')}")
        for name, one in value.items():
            if name not in self._specs and not is_parameter(one):
                raise InvalidArgument(
                    f"Converting keyword: '{_NESTED}': parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'."
                )
            self._read_one(name, one)

    def _read_one(self, name: str, value: Any) -> None:
        spec = self._specs.get(name)
        if spec is None:
            put_custom_parameter(self.parameters, name, value)
            return
        items = value if isinstance(value, list) else [value]
        shape = shape_of(spec, len(items))
        text = json_tensor.encode_input(name, items, spec.dtype, shape)
        self.given.append(GivenInput(name, spec.dtype.name, shape, len(text)))
        self.data.append(text)


def shape_of(spec: TensorSpec, count: int) -> Tuple[int, ...]:
    """The shape of an input of ``count`` elements: the innermost variable dimension takes what the fixed ones leave, others are 1.

    Raises:
        InvalidArgument: that does not come out even.
    """
    shape = list(spec.shape)
    fixed = element_count([size for size in shape if size != -1])
    variable = [place for place, size in enumerate(shape) if size == -1]
    if count % fixed or (not variable and count != fixed):
        raise InvalidArgument(f"The schema can not convert input '{spec.name}' to tensor with proper shape")
    for place in variable:
        shape[place] = 1
    if variable:
        shape[variable[-1]] = count // fixed
    return tuple(shape)
