"""The stub's side of shared memory: the parent's segments that it reads, the arena that it writes its outputs to.

Inputs are views of one base array per request. When ``execute`` is over, a dead weak reference to that base says that nobody
views it any more, and the block goes back with the reply; a live one means that the model kept something, and the block goes
back whenever the last view is collected.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..shm.arena import Arena, Block, aligned
from ..shm.errors import ProtocolError
from ..shm.segment import Segment, SegmentTable
from .tensor import Tensor

REFERENCE_BYTES = 16 << 10
"""From this size on, finding out that an output already lies in shared memory is cheaper than copying it."""

BlockKey = Tuple[int, int]


class _Home(NamedTuple):
    """Where a base array lies: what an output over it can be named by."""

    key: BlockKey
    start: int
    end: int
    block: Optional[Block]


class Placed(NamedTuple):
    """Outputs as a message names them: the blocks, and for each output (name, dtype, shape, index of its block, offset, nbytes)."""

    blocks: List[BlockKey]
    outputs: List[Tuple[int, int, Tuple[int, ...], int, int, int]]


class StubMemory:
    """Args:
    fetch: waits for a segment that the parent has announced, by id.
    grow: asks the parent for a segment for this arena.
    quantum: least size of such a segment, in bytes.
    """

    def __init__(self, fetch: Callable[[int], Segment], grow: Callable[[int], Segment], quantum: int) -> None:
        self._fetch = fetch
        self.segments = SegmentTable()
        self.arena = Arena(grow, quantum)
        self._lock = threading.Lock()  # of the arena: a model may ask for outputs in threads of its own
        self._homes: Dict[int, _Home] = {}
        self._pins: Dict[BlockKey, weakref.ref] = {}
        self.dropped: Deque[BlockKey] = deque()
        """Request blocks whose last view is gone, to be given back. Appended to by weakref callbacks, in any thread."""

    def base(self, segment_id: int, offset: int, nbytes: int) -> np.ndarray:
        """The bytes of a request's block, of which its inputs are views.

        Raises:
            ProtocolError: the location does not lie in a segment of the parent's.
        """
        if segment_id not in self.segments:
            self.segments[segment_id] = self._fetch(segment_id)
        segment = self.segments.locate(segment_id, offset, nbytes)
        base = np.ndarray((nbytes,), np.uint8, segment.memory, offset)
        if nbytes >= REFERENCE_BYTES:
            self._settle_in(base, (segment_id, offset), None)
        return base

    def let_go(self, key: BlockKey, ref: weakref.ref) -> bool:
        """Call when a request is answered and every reference of the runtime's own is dropped.

        Returns:
            Whether the model still views the request's block, which is then pinned until it no longer does.
        """
        base = ref()
        if base is None:
            return False
        self._pins[key] = weakref.ref(base, lambda _: self._unpin(key))
        return True

    def _unpin(self, key: BlockKey) -> None:
        self._pins.pop(key, None)
        self.dropped.append(key)

    def empty(self, nbytes: int) -> np.ndarray:
        """Memory for an output, UINT8 [nbytes], in the arena; given back when its last view and its last response are gone.

        Raises:
            OutOfSharedMemory: no room.
        """
        with self._lock:
            block = self.arena.allocate(nbytes)
        base = np.ndarray((nbytes,), np.uint8, block.segment.memory, block.offset)
        weakref.finalize(base, self.arena.dropped.append, block).atexit = False
        self._settle_in(base, block.key, block)
        return base

    def release(self, keys: Sequence[BlockKey]) -> None:
        """Takes back blocks of the arena that the parent has done with.

        Raises:
            ProtocolError: a block that is not in use.
        """
        with self._lock:
            for key in keys:
                block = self.arena.find(key)
                if block is None:
                    raise ProtocolError(f"block {key} is given back but not in use")
                block.release()

    def write(self, record: bytes) -> BlockKey:
        """Puts a record that is too long for the ring into a block, which the parent gives back."""
        with self._lock:
            block = self.arena.allocate(len(record))
        block.segment.memory[block.offset : block.offset + len(record)] = record
        return block.key

    def place(self, tensors: Sequence[Tuple[int, Tensor]]) -> Placed:
        """Puts outputs, as (name, tensor), where the parent can read them: by reference if they are in shared memory, else by one copy.

        Raises:
            OutOfSharedMemory: no room.
        """
        placed = Placed([], [])
        large = [(name, tensor) for name, tensor in tensors if tensor._nbytes >= REFERENCE_BYTES and self._home(tensor)]
        if large:
            tensors = [pair for pair in tensors if pair not in large]
        if tensors:
            self._by_copy(tensors, placed)
        for name, tensor in large:
            self._by_reference(name, tensor, placed)
        return placed

    def take_back(self, blocks: Sequence[BlockKey]) -> None:
        """Undoes ``place``: the response is not going to be sent."""
        self.release([key for key in blocks if self.arena.find(key) is not None])

    def _home(self, tensor: Tensor) -> Optional[_Home]:
        """Where in shared memory the tensor lies, if it does."""
        start = _address(tensor)
        for home in tuple(self._homes.values()):
            if home.start <= start and start + tensor._nbytes <= home.end:
                return home
        return None

    def _by_reference(self, name: int, tensor: Tensor, placed: Placed) -> None:
        home = self._home(tensor)
        assert home is not None
        if home.block is not None:
            with self._lock:
                home.block.retain()
        placed.outputs.append((name, tensor._dtype.code, tensor._shape, len(placed.blocks), _address(tensor) - home.start, tensor._nbytes))
        placed.blocks.append(home.key)

    def _by_copy(self, tensors: Sequence[Tuple[int, Tensor]], placed: Placed) -> None:
        outputs, offset = placed.outputs, 0
        for name, tensor in tensors:
            outputs.append((name, tensor._dtype.code, tensor._shape, 0, offset, tensor._nbytes))
            offset += aligned(tensor._nbytes)
        with self._lock:
            block = self.arena.allocate(offset)
        placed.blocks.append(block.key)
        memory, start = block.segment.memory, block.offset
        for output, (_, tensor) in zip(outputs, tensors):
            begin = start + output[4]
            # Assigning to a slice of the mapping copies straight out of the array's buffer.
            memory[begin : begin + tensor._nbytes] = _buffer(tensor)

    def _settle_in(self, base: np.ndarray, key: BlockKey, block: Optional[Block]) -> None:
        start = base.__array_interface__["data"][0]
        self._homes[start] = _Home(key, start, start + base.size, block)
        weakref.finalize(base, self._homes.pop, start, None).atexit = False


def _buffer(tensor: Tensor) -> Any:
    return tensor._array if tensor._data is None else tensor._wire()


def _address(tensor: Tensor) -> int:
    array: Any = tensor._array if tensor._data is None else tensor._data
    start: int = array.__array_interface__["data"][0]
    return start + tensor._offset
