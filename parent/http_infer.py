"""An inference over HTTP, apart from any socket: from body chunks to a request, from a response to body pieces (spec 6.4).

``InferBody`` takes the body as it arrives, in chunks of any size, and copies tensors straight into the block that the model will
read. ``encode`` leaves large outputs where they are. In between lies ``InferHeader``, the JSON part parsed, checked and laid out: for
binary inputs it depends on nothing but the model and its own bytes, which clients repeat, so it is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import msgspec

from ..shm.arena import Block
from ..shm.dtype import BY_NAME, BYTES, element_count
from ..shm.errors import OutOfSharedMemory
from . import json_tensor
from .errors import InvalidArgument, Unsupported
from .request import Output, OutputPlan, Response
from .validation import GivenInput, Layout, Placement, check_strings, lay_out, output_indices

if TYPE_CHECKING:
    from .model import Model

SMALL_BYTES = 16 << 10
"""Outputs up to this size are copied into one piece with the JSON, which is cheaper than handing each to the socket."""

_REMEMBERED_BYTES = 4096
_PREPARED = 8
_SEQUENCE_START, _SEQUENCE_END = 1, 2
_SOURCES = ("data", "binary_data_size", "shared_memory_region")

Extras = Tuple[Any, ...]


class RequestedOutput(NamedTuple):
    """How the client wants one output."""

    binary: bool


class InferHeader:
    """The JSON part of a request, parsed, checked and laid out.

    ``layout``: where the inputs go. ``literals``: (offset, bytes) of inputs given in the JSON itself. ``binary``: the inputs whose bytes
    follow, in order, ``binary_bytes`` in all. ``extras``: as a message has them. ``outputs``: None for all of them, as
    ``default_binary`` says. ``prepared``: what was worked out for responses to it.
    """

    __slots__ = (
        "binary", "binary_bytes", "default_binary", "extras", "layout", "literals", "outputs", "prepared", "request_id", "strings",
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
    ) -> None:
        self.request_id = request_id
        self.layout = layout
        self.literals = literals
        self.binary = binary
        self.binary_bytes = sum(place.nbytes for place in binary)
        self.strings = [place for place in layout.placements if place.spec.dtype is BYTES]
        self.extras = extras
        self.outputs = outputs
        self.default_binary = default_binary
        self.prepared: Dict[OutputPlan, Tuple[bytes, List[Output]]] = {}

    def wants_binary(self, name: str) -> bool:
        if self.outputs is not None and name in self.outputs:
            return self.outputs[name].binary
        return self.default_binary


def remembered_header(model: Model, data: bytes) -> InferHeader:
    """What ``parse_header`` says of ``data``, parsed only once where that is possible."""
    header: Optional[InferHeader] = model.memo.get(data)
    if header is None:
        header = parse_header(model, data)
        if len(data) <= _REMEMBERED_BYTES and not header.literals:
            model.remember(data, header)
    return header


def parse_header(model: Model, data: Union[bytes, bytearray]) -> InferHeader:
    """Parses, checks and lays out the JSON part of a request.

    Raises:
        InvalidArgument: what is wrong, in Triton's words.
        Unsupported: it asks for something this server does not have.
    """
    document = json_tensor.decode_document(data)
    request_id = _member(document, "id", str, "string", "")
    default_binary, extras = _parse_parameters(_parameters_of(document), request_id)
    inputs = _member(document, "inputs", list, "array")
    given: List[GivenInput] = []
    texts: List[Optional[bytes]] = []
    for one in inputs:
        source, text = _parse_input(model, one)
        given.append(source)
        texts.append(text)
    layout = lay_out(model, given)
    literals = [(place.offset, text) for place, text in zip(layout.placements, texts) if text is not None]
    binary = [place for place, text in zip(layout.placements, texts) if text is None]
    outputs = _parse_outputs(document, default_binary)
    indices = output_indices(model, [name for name, _ in outputs])
    if indices is not None:
        extras = (request_id, indices, *extras[2:]) if extras else (request_id, indices, "{}", 0, 0, 0)
    return InferHeader(request_id, layout, literals, binary, extras, dict(outputs) or None, default_binary)


def _member(document: Any, key: str, kind: type, kind_name: str, default: Any = ...) -> Any:
    """A member of a JSON object, of that kind; the texts are Triton's."""
    value = document.get(key, default) if isinstance(document, dict) else default
    if value is ...:
        raise InvalidArgument(f"Unable to parse '{key}': attempt to access non-existing object member '{key}'")
    if not isinstance(value, kind):
        what = "JSON non-array as array" if kind is list else f"JSON non-{kind_name} as {kind_name}"
        raise InvalidArgument(f"Unable to parse '{key}': attempt to access {what}")
    return value


def _parameters_of(document: Any) -> Dict[str, Any]:
    return _member(document, "parameters", dict, "object", {})  # type: ignore[no-any-return]


def _parse_input(model: Model, one: Any) -> Tuple[GivenInput, Optional[bytes]]:
    """An input, and its bytes if they are in the JSON."""
    name = _member(one, "name", str, "string")
    shape = _parse_shape(_member(one, "shape", list, "array"))
    datatype = _member(one, "datatype", str, "string")
    dtype = BY_NAME.get(datatype)
    if dtype is None:
        raise InvalidArgument(f"invalid datatype for input {name}")
    parameters = _parameters_of(one)
    present = [key for key in _SOURCES if key in (one if key == "data" else parameters)]
    if len(present) != 1:
        found = "no field is set" if not present else "set " + ", ".join(f"'{key}'" for key in present)
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
        return GivenInput(name, datatype, shape, _unsigned(parameters, "binary_data_size")), None
    raise Unsupported("client shared memory is not supported by this version of stublet")


def _parse_shape(shape: List[Any]) -> Tuple[int, ...]:
    if any(type(dim) is not int or dim < 0 for dim in shape):
        raise InvalidArgument("Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer")
    return tuple(shape)


def _unsigned(parameters: Dict[str, Any], key: str) -> int:
    value = parameters[key]
    if type(value) is not int or not 0 <= value < 2**64:
        raise InvalidArgument(f"Unable to parse '{key}': attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value


def _boolean(parameters: Dict[str, Any], key: str) -> bool:
    value = parameters[key]
    if type(value) is not bool:
        raise InvalidArgument(f"Unable to parse '{key}': attempt to access JSON non-boolean as boolean")
    return value


def _parse_parameters(parameters: Dict[str, Any], request_id: str) -> Tuple[bool, Extras]:
    """(whether outputs are binary by default, extras of the message)."""
    default_binary, flags, timeout = False, 0, 0
    correlation_id: Union[int, str] = 0
    own: Dict[str, Any] = {}
    for key, value in parameters.items():
        if key == "binary_data_output":
            default_binary = _boolean(parameters, key)
        elif key == "sequence_id":
            correlation_id = value if isinstance(value, str) else _unsigned(parameters, key)
        elif key == "sequence_start":
            flags |= _SEQUENCE_START if _boolean(parameters, key) else 0
        elif key == "sequence_end":
            flags |= _SEQUENCE_END if _boolean(parameters, key) else 0
        elif key == "timeout":
            timeout = _unsigned(parameters, key)
        elif key == "priority":
            _unsigned(parameters, key)
        elif key.startswith("triton_"):
            raise InvalidArgument("parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.")
        elif isinstance(value, (bool, int, float, str)):
            own[key] = value
        else:
            raise InvalidArgument(f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'.")
    if not (request_id or own or correlation_id or flags or timeout):
        return default_binary, ()
    return default_binary, (request_id, None, msgspec.json.encode(own).decode(), correlation_id, flags, timeout)


def _parse_outputs(document: Any, default_binary: bool) -> List[Tuple[str, RequestedOutput]]:
    outputs = []
    for one in _member(document, "outputs", list, "array", []):
        name = _member(one, "name", str, "string")
        parameters = _parameters_of(one)
        for key in ("classification", "shared_memory_region"):
            if key in parameters:
                raise Unsupported(f"'{key}' of output '{name}' is not supported by this version of stublet")
        binary = _boolean(parameters, "binary_data") if "binary_data" in parameters else default_binary
        outputs.append((name, RequestedOutput(binary)))
    return outputs


class InferBody:
    """A request body on its way in. ``feed`` each chunk, then ``finish``; ``abandon`` if it ends early or an error was raised.

    Args:
        header_length: of ``Inference-Header-Content-Length``; None when the body is all JSON, 0 when it is all data of the one input.
        content_length: of the whole body, None when it comes chunked.
        limit: most bytes of JSON, or of raw data, to take.
    """

    def __init__(self, model: Model, header_length: Optional[int], content_length: Optional[int], limit: int) -> None:
        self._model = model
        self._limit = limit
        self._whole = not header_length
        self._raw = header_length == 0
        self._header_length = header_length
        self._content_length = content_length
        self._buffer = bytearray()
        self._received = 0
        self._block: Optional[Block] = None
        self._header: Optional[InferHeader] = None
        self._next = 0  # which binary input the next byte belongs to
        self._filled = 0  # how many bytes of it are there
        if header_length is not None and (header_length < 0 or (content_length is not None and header_length > content_length)):
            self._bad_header_length(content_length)
        if self._whole and content_length is not None:
            self._check_limit(content_length)
        elif header_length is not None:
            self._check_limit(header_length)

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidArgument, Unsupported: the request is wrong; nothing more need be fed.
            Unavailable: no room for its inputs.
        """
        self._received += len(chunk)
        if self._whole:
            self._check_limit(self._received)
            self._buffer += chunk
            return
        if self._header is None:
            assert self._header_length is not None
            if len(chunk) == self._content_length:
                self._take_whole(chunk)
                return
            missing = self._header_length - len(self._buffer)
            if not self._buffer and len(chunk) >= missing:
                head = chunk[:missing]
            else:
                self._buffer += chunk[:missing]
                if len(self._buffer) < self._header_length:
                    return
                head = bytes(self._buffer)
                self._buffer.clear()
            self._begin(remembered_header(self._model, head))
            if len(chunk) > missing:
                self._fill(memoryview(chunk)[missing:])
        else:
            self._fill(memoryview(chunk))

    def finish(self) -> Tuple[InferHeader, Block]:
        """The whole body is there: the request, whose block is the caller's from now on.

        Raises:
            InvalidArgument, Unsupported, Unavailable: as ``feed``.
        """
        if self._raw:
            self._finish_raw()
        elif self._whole:
            self._begin(parse_header(self._model, self._buffer))
            self._buffer.clear()
        elif self._header is None:
            self._bad_header_length(self._received)
        header, block = self._header, self._block
        assert header is not None and block is not None
        if self._next < len(header.binary):
            self._skip_full()
        if self._next < len(header.binary):
            place = header.binary[self._next]
            raise InvalidArgument(
                f"unexpected size for input '{place.spec.name}', expecting {place.nbytes - self._filled} additional bytes for model "
                f"'{self._model.name}'"
            )
        for place in header.strings:
            start = block.offset + place.offset
            check_strings(self._model, place, memoryview(block.segment.memory)[start : start + place.nbytes])
        self._block = None
        return header, block

    def abandon(self) -> None:
        """Gives the memory back."""
        self._buffer.clear()
        if self._block is not None:
            self._block.arena.dropped.append(self._block)
            self._block = None

    def _begin(self, header: InferHeader) -> None:
        if self._content_length is not None and not self._raw:
            announced = self._content_length - (self._header_length or self._content_length)
            if announced > header.binary_bytes:
                raise InvalidArgument(f"unexpected additional input data for model '{self._model.name}'")
            if announced < header.binary_bytes:
                self._too_short(header, announced)
        self._block = self._model.allocate(header.layout.nbytes)
        self._header = header
        for offset, text in header.literals:
            self._write(offset, text, len(text))
        # An idle connection keeps the header of its last request; not its data.
        header.literals = ()

    def _take_whole(self, chunk: bytes) -> None:
        """The body came in one piece, as small ones do."""
        position = self._header_length
        assert position is not None
        header = remembered_header(self._model, chunk[:position])
        self._begin(header)
        for place in header.binary:
            nbytes = place.nbytes
            self._write(place.offset, chunk[position : position + nbytes], nbytes)
            position += nbytes
        self._next = len(header.binary)

    def _write(self, offset: int, data: Any, nbytes: int) -> None:
        assert self._block is not None
        try:
            self._block.write(offset, data, nbytes)
        except OutOfSharedMemory as error:
            raise self._model.no_room(error) from error

    def _too_short(self, header: InferHeader, announced: int) -> None:
        for place in header.binary:
            if announced < place.nbytes:
                raise InvalidArgument(
                    f"unexpected size for input '{place.spec.name}', expecting {place.nbytes - announced} additional bytes for model "
                    f"'{self._model.name}'"
                )
            announced -= place.nbytes

    def _fill(self, data: memoryview) -> None:
        assert self._header is not None
        binary = self._header.binary
        while data:
            self._skip_full()
            if self._next == len(binary):
                raise InvalidArgument(f"unexpected additional input data for model '{self._model.name}'")
            place = binary[self._next]
            take = min(len(data), place.nbytes - self._filled)
            self._write(place.offset + self._filled, data[:take], take)
            self._filled += take
            data = data[take:]

    def _skip_full(self) -> None:
        assert self._header is not None
        binary = self._header.binary
        while self._next < len(binary) and self._filled == binary[self._next].nbytes:
            self._next += 1
            self._filled = 0

    def _finish_raw(self) -> None:
        """A body that is nothing but the data of the model's single input (spec 6.4)."""
        model, data = self._model, self._buffer
        if len(model.inputs) != 1:
            raise InvalidArgument(
                f"Raw request must only have 1 input (found 1) to be deduced but got {len(model.inputs)} inputs in '{model.name}' "
                "model configuration"
            )
        spec = model.inputs[0]
        shape = [1, *spec.shape[1:]] if model.max_batch_size > 0 else list(spec.shape)
        if spec.dtype is BYTES:
            data[:0] = len(data).to_bytes(4, "little")
            shape = [1 if dim == -1 else dim for dim in shape]
        elif shape.count(-1) == 1:
            fixed = element_count([dim for dim in shape if dim != -1]) * spec.dtype.itemsize
            shape[shape.index(-1)] = len(data) // fixed
        elif shape.count(-1) > 1:
            raise InvalidArgument(
                f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one variable-sized dimension"
            )
        layout = lay_out(model, [GivenInput(spec.name, spec.dtype.name, tuple(shape), len(data))])
        self._begin(InferHeader("", layout, [(0, data)], (), (), None, True))

    def _check_limit(self, nbytes: int) -> None:
        if nbytes > self._limit:
            if self._raw:
                raise InvalidArgument(
                    f"Raw input has a byte_size ({nbytes} bytes) that exceeds the maximum allowed value of {self._limit} bytes"
                )
            raise InvalidArgument(
                f"request JSON size of {nbytes} bytes exceeds the maximum allowed input size of {self._limit} bytes. "
                "Use --http-max-input-size to increase the limit."
            )

    def _bad_header_length(self, body: Optional[int]) -> None:
        raise InvalidArgument(f"inference header size should be in range (0, {body or 0}), got: {self._header_length}")


class Encoded(NamedTuple):
    """A response body: its pieces in order, their sum, and the length of the JSON part when binary data follows it."""

    pieces: List[Any]
    nbytes: int
    json_bytes: Optional[int]


def encode(model: Model, header: InferHeader, response: Response) -> Encoded:
    """The body of a response, which is released, or will be when the last piece is dropped.

    Raises:
        InvalidArgument: an output has no JSON form. The response is released.
    """
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


def _prepare(model: Model, header: InferHeader, response: Response) -> Tuple[bytes, List[Output]]:
    """The JSON part and the outputs that follow it. All-binary ones depend only on the header and the plan, and are remembered."""
    plan = response.plan
    outputs = plan.outputs
    if header.outputs is not None and len(outputs) > 1:
        place = {name: i for i, name in enumerate(header.outputs)}
        outputs = sorted(outputs, key=lambda output: place[output.name])
    binary = [output for output in outputs if header.wants_binary(output.name)]
    try:
        prepared = _head(model, header, response, outputs), binary
    except InvalidArgument:
        response.release()
        raise
    if len(binary) == len(outputs) and not response.parameters and len(header.prepared) < _PREPARED:
        header.prepared[plan] = prepared
    return prepared


def _head(model: Model, header: InferHeader, response: Response, outputs: List[Output]) -> bytes:
    parts = []
    for output in outputs:
        start = msgspec.json.encode({"name": output.name, "datatype": output.dtype.name, "shape": output.shape})[:-1]
        if header.wants_binary(output.name):
            parts.append(start + b',"parameters":{"binary_data_size":%d}}' % output.nbytes)
        else:
            parts.append(start + b',"data":' + json_tensor.decode_output(output.name, response.copy(output), output.dtype) + b"}")
    about: Dict[str, Any] = {"id": header.request_id} if header.request_id else {}
    about["model_name"] = model.name
    about["model_version"] = str(model.version)
    text = msgspec.json.encode(about)[:-1]
    if response.parameters:
        text += b',"parameters":' + response.parameters.encode()
    return text + b',"outputs":[' + b",".join(parts) + b"]}"
