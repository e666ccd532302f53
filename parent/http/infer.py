"""The body of an inference over HTTP, apart from any socket: from chunks to a request (spec 6.4).

``InferBody`` takes the body as it arrives, in chunks of any size, and copies tensors straight into the block that the model will read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple, Union

from ...shm.arena import Block
from ...shm.dtype import BYTES, element_count
from ...shm.errors import OutOfSharedMemory
from ..errors import InvalidArgument, ServerError
from ..memory_limits import UNCOUNTED_BYTES
from ..request import Outcome, Request
from ..slabs import Place, request_at
from ..validation import GivenInput, check_strings, lay_out
from .infer_header import InferHeader, parse_header, remembered_header
from .json_document import check_size

if TYPE_CHECKING:
    from ..servable import Servable

_REGION_KEY = b'"shared_memory_region"'


class InferBody:
    """A request body on its way in. ``feed`` each chunk, then ``finish``; ``abandon`` if it ends early or an error was raised.

    Args:
        header_length: of ``Inference-Header-Content-Length``; None when the body is all JSON, 0 when it is all data of the one input.
        content_length: of the whole body, None when it comes chunked.
        limit: most bytes of JSON, or of raw data, to take.
    """

    def __init__(self, model: Servable, header_length: Optional[int], content_length: Optional[int], limit: int) -> None:
        self._model = model
        self._limit = limit
        self._whole = not header_length
        self._raw = header_length == 0
        self._header_length = header_length
        self._content_length = content_length
        self._buffer = bytearray()
        self._counted = 0  # bytes of it, of what requests may have
        self._received = 0
        self._block: Union[Block, Place, None] = None
        self._header: Optional[InferHeader] = None
        self._next = 0  # which binary input the next byte belongs to
        self._filled = 0  # how many bytes of it are there
        if header_length is not None and (header_length < 0 or (content_length is not None and header_length > content_length)):
            self._bad_header_length(content_length)
        if self._whole and content_length is not None:
            self._check_limit(content_length)
        elif header_length is not None:
            self._check_limit(header_length)

    def progress(self) -> Tuple[int, int]:
        """How many bytes have come, and how many there will be, 0 if that is not known yet."""
        if self._content_length is None and self._header is not None:
            return self._received, (self._header_length or 0) + self._header.binary_bytes
        return self._received, self._content_length or 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidArgument, Unsupported: the request is wrong; nothing more need be fed.
            Unavailable: no room for its inputs.
        """
        self._received += len(chunk)
        if self._whole:
            self._check_limit(self._received)
            self._count(self._content_length or self._received)
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
                self._count(self._header_length)
                self._buffer += chunk[:missing]
                if len(self._buffer) < self._header_length:
                    return
                head = bytes(self._buffer)
                self._drop_buffer()
            self._begin(remembered_header(self._model, head))
            if len(chunk) > missing:
                self._fill(memoryview(chunk)[missing:])
        else:
            self._fill(memoryview(chunk))

    def finish(self) -> Tuple[InferHeader, Union[Block, Place]]:
        """The whole body is there: the request, whose block is the caller's from now on.

        Raises:
            InvalidArgument, Unsupported, Unavailable: as ``feed``.
        """
        self._uncount()  # what is made of it takes its place before anyone else can
        if self._raw:
            self._finish_raw()
        elif self._whole:
            # A document without tensors of its own is one that clients repeat.
            repeated = _REGION_KEY in self._buffer
            self._begin(remembered_header(self._model, bytes(self._buffer)) if repeated else parse_header(self._model, self._buffer))
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
            assert isinstance(block, Block)
            start = block.offset + place.offset
            check_strings(self._model, place, memoryview(block.segment.memory)[start : start + place.nbytes])
        self._block = None
        return header, block

    def abandon(self) -> None:
        """Gives the memory back."""
        self._drop_buffer()
        if self._block is not None:
            self._block.arena.dropped.append(self._block)
            self._block = None

    def _count(self, nbytes: int) -> None:
        """The buffer has, or will have, so many bytes."""
        if nbytes > self._counted and nbytes > UNCOUNTED_BYTES:
            try:
                self._model.server.take_for_body(nbytes - self._counted)
            except OutOfSharedMemory as error:
                raise self._model.no_room(error) from error
            self._counted = nbytes

    def _uncount(self) -> None:
        if self._counted:
            self._model.server.request_memory.give_back(self._counted)
            self._counted = 0

    def _drop_buffer(self) -> None:
        self._buffer.clear()
        self._uncount()

    def _begin(self, header: InferHeader) -> None:
        if self._content_length is not None and not self._raw:
            announced = self._content_length - (self._header_length or self._content_length)
            if announced > header.binary_bytes:
                raise InvalidArgument(f"unexpected additional input data for model '{self._model.name}'")
            if announced < header.binary_bytes:
                self._too_short(header, announced)
        self._block = self._model.place(header.layout)
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
            check_size(nbytes, self._limit)

    def _bad_header_length(self, body: Optional[int]) -> None:
        raise InvalidArgument(f"inference header size should be in range (0, {body or 0}), got: {self._header_length}")


def make_request(
    model: Servable, header: InferHeader, block: Union[Block, Place], respond: Callable[[Optional[Outcome], bool], None]
) -> Request:
    """The request of a body that is complete; it has the block.

    Raises:
        NotFound, InvalidArgument: it names a region that is not, or not any more, registered so; the block is given back.
    """
    layout, regions = header.layout, None
    if layout.slices or header.writes:
        try:
            regions = model.server.client_memory.use(layout.slices, header.writes)
        except ServerError:
            block.arena.dropped.append(block)
            raise
    request = request_at(block, layout, header.extras, respond, regions)
    request.priority = header.priority
    return request
