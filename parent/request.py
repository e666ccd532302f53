"""A request and its response as the server holds them: where their tensors lie in shared memory, and who is told."""

from __future__ import annotations

import mmap
import weakref
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from ..shm.arena import Block
from ..shm.dtype import BY_CODE, DataType
from ..shm.errors import ProtocolError
from .errors import ServerError
from .model_config import TensorSpec

Lease = Tuple[Callable[[Any], None], Any]
"""What gives a block back: a function safe to call in any thread, even from a garbage collection, and its argument."""


class Output(NamedTuple):
    """One output: ``nbytes`` bytes at ``offset`` in block number ``block`` of its response."""

    name: str
    dtype: DataType
    shape: Tuple[int, ...]
    block: int
    offset: int
    nbytes: int


class OutputPlan:
    """What a response consists of, apart from where its blocks are. The outputs of a model tend to have the same one every time, so
    it is made once for each and kept with the model; compared by identity.

    ``extents``: for each block, the bytes of it that outputs use. ``nbytes``: sum of all outputs.
    """

    __slots__ = ("extents", "nbytes", "outputs")

    def __init__(self, specs: Sequence[TensorSpec], placed: Sequence[Tuple[Any, ...]], blocks: int) -> None:
        """Reads the outputs of a message that was decoded.

        Raises:
            ProtocolError: an output that the model does not have.
        """
        extents = [0] * blocks
        outputs = []
        for index, code, shape, block, offset, nbytes in placed:
            if index >= len(specs):
                raise ProtocolError(f"output {index} of {len(specs)}")
            outputs.append(Output(specs[index].name, BY_CODE[code], shape, block, offset, nbytes))
            extents[block] = max(extents[block], offset + nbytes)
        self.outputs = outputs
        self.extents = extents
        self.nbytes = sum([output.nbytes for output in outputs])


class Response:
    """The outputs of a request, which stay in shared memory until ``release`` or, after ``views``, until the last view is gone.

    ``places``: the mapping and the offset in it of each block.
    """

    __slots__ = ("_leases", "parameters", "places", "plan")

    def __init__(self, plan: OutputPlan, places: List[Tuple[mmap.mmap, int]], leases: List[Lease], parameters: str) -> None:
        self.plan = plan
        self.places = places
        self._leases = leases
        self.parameters = parameters

    def copy(self, output: Output) -> bytes:
        """The bytes of one output."""
        memory, start = self.places[output.block]
        start += output.offset
        return memory[start : start + output.nbytes]

    def release(self) -> None:
        """Gives the memory back. Nothing may read the outputs afterwards."""
        for give_back, block in self._leases:
            give_back(block)
        self._leases = []

    def views(self) -> Iterator[np.ndarray]:
        """The bytes of each output, UINT8 [nbytes], without a copy; each block goes back when the last view of it is collected."""
        bases: Dict[int, np.ndarray] = {}
        for index, (give_back, block) in enumerate(self._leases):
            memory, start = self.places[index]
            bases[index] = np.ndarray((self.plan.extents[index],), np.uint8, memory, start)
            weakref.finalize(bases[index], give_back, block).atexit = False
        self._leases = []
        for output in self.plan.outputs:
            yield bases[output.block][output.offset : output.offset + output.nbytes]


Outcome = Union[Response, ServerError]


class Request:
    """One inference on its way.

    ``inputs`` and ``extras`` are as in a message (``stublet.shm.message``); ``done`` is called once, in whatever thread the outcome
    becomes known, and must not block. Until then the request holds its ``block``.
    """

    __slots__ = ("block", "done", "extras", "inputs", "nbytes")

    def __init__(
        self, block: Block, nbytes: int, inputs: Sequence[Tuple[Any, ...]], extras: Tuple[Any, ...], done: Callable[[Outcome], None]
    ) -> None:
        self.block = block
        self.nbytes = nbytes
        self.inputs = inputs
        self.extras = extras
        self.done = done
