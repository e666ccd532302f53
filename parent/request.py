"""A request and its response as the server holds them: where their tensors lie in shared memory, and who is told."""

from __future__ import annotations

import mmap
import weakref
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from ..shm.arena import Block
from ..shm.dtype import DataType
from .errors import ServerError

Lease = Tuple[Callable[[Any], None], Any]
"""What gives a block back: a function safe to call in any thread, even from a garbage collection, and its argument."""


class Output(NamedTuple):
    """One output: ``nbytes`` bytes at ``start`` of ``memory``, in block ``lease`` of its response."""

    name: str
    dtype: DataType
    shape: Tuple[int, ...]
    memory: mmap.mmap
    start: int
    nbytes: int
    lease: int


class Response:
    """The outputs of a request, which stay in shared memory until ``release`` or, after ``views``, until the last view is gone."""

    __slots__ = ("_leases", "outputs", "parameters")

    def __init__(self, outputs: List[Output], parameters: str, leases: List[Lease]) -> None:
        self.outputs = outputs
        self.parameters = parameters
        self._leases = leases

    def release(self) -> None:
        """Gives the memory back. Nothing may read the outputs afterwards."""
        for give_back, block in self._leases:
            give_back(block)
        self._leases = []

    def views(self) -> Iterator[np.ndarray]:
        """The bytes of each output, UINT8 [nbytes], without a copy; each block goes back when the last view of it is collected."""
        bases = {}
        for index, (give_back, block) in enumerate(self._leases):
            inside = [o for o in self.outputs if o.lease == index]
            if not inside:
                give_back(block)
                continue
            start, end = min(o.start for o in inside), max(o.start + o.nbytes for o in inside)
            base = np.ndarray((end - start,), np.uint8, inside[0].memory, start)
            weakref.finalize(base, give_back, block).atexit = False
            bases[index] = base, start
        self._leases = []
        for output in self.outputs:
            base, start = bases[output.lease]
            yield base[output.start - start : output.start - start + output.nbytes]


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
