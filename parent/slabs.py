"""Slabs: blocks in which the inputs of several requests lie next to one another (``concatenate_batch``).

    block     | lane of INPUT0                      | lane of INPUT1                      |
              | row 0 | row 1 | row 2 | ...         | row 0 | row 1 | row 2 | ...         |
                \\__ request A _/ \\_ B _/              \\__ request A _/ \\_ B _/

A row is what one batch item has of an input. Requests take rows as they arrive, so those that are executed together tend to lie in
consecutive ones, and the batch is then a view of the slab. Each request holds the whole block; when the last one lets go and no more can
come to lie in it, it goes back to the arena. Requests have a slab in common if they have the same inputs, of the same shapes but for the
batch size; strings, whose sizes vary, lie in blocks of their own, with all that is in their request.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from ..shm.arena import Arena, Block, aligned
from ..shm.errors import OutOfSharedMemory
from .request import Outcome, Request

if TYPE_CHECKING:
    from .client_memory import RegionUse
    from .validation import Layout

Input = Tuple[int, int, Tuple[int, ...], int, int, int]
"""As a message describes it."""

_BATCHES = 2
"""So many of the largest batches fit into a slab, if its size allows: a batch that goes on in the next one is no view."""

_ROWS, _SMALL_BYTES = 256, 1 << 20
"""So many rows fit in any case, up to this size. A larger slab costs more by what it drives out of the caches."""

_SLAB_BYTES = 64 << 20
"""No slab is larger. Where it does not hold two items, requests have blocks of their own."""

_LANES = 8
"""So many kinds of requests have a slab open at a time."""

_Kind = Tuple[Tuple[int, Tuple[int, ...]], ...]
"""(input, shape without the batch dimension) of each input."""


class Rows(NamedTuple):
    """What a layout says to slabs. ``kind``: which requests may lie in one with it. ``size``: batch items. ``inputs``: in the order of the
    configuration, laid out in a block of the request's own. ``starts``: where in that block each begins, ascending, and ``order``: the
    places of these in ``inputs``. ``described``: what ``inputs`` are in a slab, by its capacity and the first row, as far as it was asked."""

    kind: _Kind
    size: int
    inputs: Tuple[Input, ...]
    starts: List[int]
    order: List[int]
    described: Dict[Tuple[int, int], Tuple[Input, ...]]


def rows_of(inputs: Tuple[Input, ...]) -> Optional[Rows]:
    """For inputs that all lie in one block and have a batch dimension; None if there is nothing to be placed."""
    size = inputs[0][2][0] if inputs else 0
    if not size or not any(nbytes for *_, nbytes in inputs):
        return None
    order = sorted(range(len(inputs)), key=lambda i: (inputs[i][4], inputs[i][5]))
    kind = tuple([(index, shape[1:]) for index, _, shape, *_ in inputs])
    return Rows(kind, size, inputs, [inputs[i][4] for i in order], order, {})


class Slab:
    """``capacity`` rows in ``block``, of which ``used`` are taken. ``lanes``: where in the block that of each input begins; ``widths``: bytes
    of a row of each. ``idle``: nothing lay in it when ``Slabs.shed`` looked."""

    __slots__ = ("block", "capacity", "idle", "lanes", "used", "widths")

    def __init__(self, block: Block, capacity: int, widths: List[int]) -> None:
        self.block = block
        self.capacity = capacity
        self.widths = widths
        self.used = 0
        self.idle = False
        self.lanes: List[int] = []
        offset = 0
        for width in widths:
            self.lanes.append(offset)
            offset += aligned(width * capacity)


class Place:
    """Rows that a request has taken: stands in for a block of its own as long as its inputs are written. Holds the slab's block."""

    __slots__ = ("_first", "_rows", "_slab", "arena", "write_ns")

    def __init__(self, slab: Slab, rows: Rows, first: int) -> None:
        self._slab = slab
        self._rows = rows
        self._first = first
        self.arena = slab.block.arena
        self.write_ns = 0

    def write(self, offset: int, data: Any, nbytes: int) -> None:
        """As a block's, ``offset`` being that in a block of the request's own.

        Raises:
            OutOfSharedMemory: the segment is reserved as it fills, and there is no more memory.
        """
        rows, slab = self._rows, self._slab
        number = bisect_right(rows.starts, offset) - 1 if len(rows.starts) > 1 else 0
        index = rows.order[number]
        start = slab.lanes[index] + self._first * slab.widths[index] + offset - rows.starts[number]
        block = slab.block
        block.write(start, data, nbytes)
        # The block has no request of its own to account for.
        self.write_ns += block.write_ns
        block.write_ns = 0

    def release(self) -> None:
        """Lets go of the block."""
        self._slab.block.release()

    @property
    def block(self) -> Block:
        """That of the slab."""
        return self._slab.block

    @property
    def inputs(self) -> Tuple[Input, ...]:
        """As a message describes them."""
        key = self._slab.capacity, self._first
        described = self._rows.described.get(key)
        if described is None:
            lanes, widths, first = self._slab.lanes, self._slab.widths, self._first
            described = tuple(
                [
                    (index, dtype, shape, 0, lane + first * width, nbytes)
                    for (index, dtype, shape, _, _, nbytes), lane, width in zip(self._rows.inputs, lanes, widths)
                ]
            )
            self._rows.described[key] = described
        return described


class Slabs:
    """The slabs of a model. All methods are called under its lock, in any thread.

    Args:
        batch: the largest batch, in items.
    """

    def __init__(self, arena: Arena, batch: int) -> None:
        self._arena = arena
        self._batch = batch
        self._open: Dict[_Kind, Slab] = {}

    def take(self, rows: Rows) -> Optional[Place]:
        """The next rows for such a request; None if it had better have a block of its own, or there is no room for another slab."""
        slab = self._open.get(rows.kind)
        if slab is not None and slab.block.holders == 1:
            slab.used = 0
            slab.idle = False
        if slab is None or slab.used + rows.size > slab.capacity:
            try:
                slab = self._begin(rows)
            except OutOfSharedMemory:
                self.close()
                return None
            if slab is None:
                return None
        first = slab.used
        slab.used += rows.size
        slab.block.retain()
        return Place(slab, rows, first)

    def cut(self) -> None:
        """Everyone who waited has been handed over: the next batch begins a slab of its own where it might not fit into what is left."""
        for kind, slab in list(self._open.items()):
            if slab.capacity - slab.used < self._batch and slab.block.holders > 1:
                self._end(kind)

    def close(self) -> None:
        """Lets go of every slab that requests could still be placed in."""
        for kind in list(self._open):
            self._end(kind)

    def shed(self, at_once: bool) -> None:
        """Lets go of those in which nothing lies and, unless ``at_once``, nothing has come to lie since the last call."""
        for kind, slab in list(self._open.items()):
            if slab.block.holders == 1:
                if at_once or slab.idle:
                    self._end(kind)
                slab.idle = True

    def idle_bytes(self) -> int:
        """Of slabs in which nothing lies."""
        return sum(slab.block.size for slab in self._open.values() if slab.block.holders == 1)

    def _begin(self, rows: Rows) -> Optional[Slab]:
        widths = [nbytes // rows.size for *_, nbytes in rows.inputs]
        width = sum(widths)
        capacity = min(max(_BATCHES * self._batch, min(_ROWS, _SMALL_BYTES // width)), _SLAB_BYTES // width)
        if capacity < max(rows.size, 2):
            return None
        if rows.kind in self._open:
            self._end(rows.kind)
        elif len(self._open) >= _LANES:
            self._end(next(iter(self._open)))
        block = self._arena.allocate(sum([aligned(width * capacity) for width in widths]))
        slab = self._open[rows.kind] = Slab(block, capacity, widths)
        return slab

    def _end(self, kind: _Kind) -> None:
        self._open.pop(kind).block.release()


def request_at(
    place: Union[Block, Place],
    layout: Layout,
    extras: Tuple[Any, ...],
    respond: Callable[[Optional[Outcome], bool], None],
    regions: Optional[RegionUse] = None,
) -> Request:
    """The request whose inputs were laid out so and lie there, in a block of their own or in rows."""
    if type(place) is Place:
        block = place.block
        request = Request([(block, block.size)], place.inputs, extras, respond, regions=regions)
        request.input_ns = place.write_ns
        return request
    return Request([(place, layout.nbytes)], layout.inputs, extras, respond, regions=regions)  # type: ignore[list-item]


def in_order(requests: List[Request]) -> List[Request]:
    """The requests of a batch as they lie in their slab, if that is the same for all of them. Those whose bodies took longer to arrive than
    others', which were begun later, would be out of order."""
    block = requests[0].blocks[0][0] if requests[0].blocks else None
    if all(request.blocks and request.blocks[0][0] is block for request in requests):
        return sorted(requests, key=_first_row)
    return requests


def _first_row(request: Request) -> int:
    offset: int = request.inputs[0][4] if request.inputs else 0
    return offset
