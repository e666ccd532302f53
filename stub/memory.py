"""The stub's side of shared memory: the segments that it reads, the arena that it writes its outputs to.

The inputs of a request are views of one base array for each of its blocks. When ``execute`` is over, a dead weak reference to that base
says that nobody views it any more, and the block goes back with the answer; a live one means that the model kept something, and the
block goes back whenever the last view is collected.

Blocks of another stub are borrowed: the inputs of a request that another model made, the outputs of one that this model made. What
the model writes to them must stay private, so a small one is copied, and a large one viewed in a copy-on-write mapping of its segment.
The kernel's page map says which pages of that were written to: a tensor without any can still be sent on by reference, and written
ones are dropped with the last view, before the block goes back and is used again. It need not be asked, which takes 20 to 120 us for
16 MiB, if the process had no page fault meanwhile: the first write to a page of such a mapping is one.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..shm.arena import LARGE_BYTES, Arena, Block, aligned
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.segment import Segment, SegmentTable
from .tensor import Tensor

if TYPE_CHECKING:
    from .cuda.exports import Exports

REFERENCE_BYTES = 16 << 10
"""From this size on, finding out that an output already lies in shared memory is cheaper than copying it."""

_PAGE = mmap.PAGESIZE

_PRIVATE_VIEWS = 4
"""So many views of one borrowed block may there be at a time; those beyond are of copies."""

_CLIENT = -1
"""In place of a segment: memory of a client's, which nobody else can be told of."""

BlockKey = Tuple[int, int]
Place = Tuple[int, int, int]
"""(segment, offset, bytes) of a block that was received."""


class _Home(NamedTuple):
    """Where a base array lies: what an output over it can be named by.

    ``is_input``: the model may write to it for itself. ``private``: the mapping, if it is a copy-on-write one, and ``faults``: the page
    faults so far when the base was made.
    """

    key: BlockKey
    start: int
    end: int
    block: Optional[Block]
    is_input: bool
    private: Optional[mmap.mmap]
    faults: Optional[Tuple[int, ...]]


class Placed(NamedTuple):
    """Outputs as a message names them: the blocks, and for each output (name, dtype, shape, index of its block, offset, nbytes)."""

    blocks: List[BlockKey]
    outputs: List[Tuple[Any, int, Tuple[int, ...], int, int, int]]


class StubMemory:
    """Args:
    segments: those that can be read, by id.
    fetch: waits for one that the parent has announced.
    grow: asks the parent for a segment for this arena.
    reclaim: looks for blocks that the parent gives back, before the arena grows.
    quantum: least size of a new segment, in bytes.
    """

    def __init__(
        self,
        segments: SegmentTable,
        fetch: Callable[[int], Segment],
        grow: Callable[[int], Segment],
        reclaim: Callable[[], None],
        quantum: int,
    ) -> None:
        self.segments = segments
        self._fetch = fetch
        self.arena = Arena(grow, quantum, reclaim)
        # Of the arena. One thread may need it twice: to find room it may have to take what comes back.
        self._lock = threading.RLock()
        self._homes: Dict[int, _Home] = {}
        self._pins: Dict[Tuple[BlockKey, int], weakref.ref] = {}
        self._page_map: Optional[int] = None
        self.make_exports: Optional[Callable[[], Exports]] = None
        """Makes what puts tensors on GPUs where others can read them; needed once."""
        self._exports: Optional[Exports] = None
        self.has_devices = False
        """Whether there may be segments of device memory."""
        self.dropped: Deque[BlockKey] = deque()
        """Blocks of others whose last view is gone, to be given back. Appended to by weakref callbacks, in any thread."""

    # What is received

    def receive(self, blocks: Sequence[Place]) -> List[np.ndarray]:
        """The bytes of a request's blocks, of which its inputs are views.

        Raises:
            ProtocolError: a location does not lie in a segment of the parent's.
        """
        bases = []
        for segment_id, offset, nbytes in blocks:
            base = np.ndarray((nbytes,), np.uint8, self._locate(segment_id, offset, nbytes).memory, offset)
            if nbytes >= REFERENCE_BYTES:
                self._settle_in(base, (segment_id, offset), None, is_input=True)
            bases.append(base)
        return bases

    def take_in(self, nbytes: int) -> np.ndarray:
        """Memory in the arena for an input, UINT8 [nbytes], given back when its last view and its last response are gone.

        Raises:
            OutOfSharedMemory: no room.
        """
        return self._new(nbytes, is_input=True)

    def view_client(self, mapping: mmap.mmap, offset: int, nbytes: int) -> Optional[np.ndarray]:
        """A client's bytes in a copy-on-write mapping, UINT8 [nbytes]; None if pages of theirs are viewed in that mapping already, where
        what is written to one must not be seen in another."""
        base = np.ndarray((nbytes,), np.uint8, mapping, offset)
        start = base.__array_interface__["data"][0]
        first, end = start - start % _PAGE, start + nbytes
        for home in list(self._homes.values()):
            if home.private is mapping and home.start < end + -end % _PAGE and first < home.end + -home.end % _PAGE:
                return None
        return base if self._settle_in(base, (_CLIENT, offset - start % _PAGE), None, private=mapping) else None

    def key_of(self, base: np.ndarray) -> BlockKey:
        """Of what ``take_in`` made."""
        return self._homes[base.__array_interface__["data"][0]].key

    def borrow(self, blocks: Sequence[Place]) -> List[Any]:
        """The bytes of another stub's blocks; what is written to them is seen by nobody else. Of device memory, a ``cuda.memory.LentMemory``.

        Raises:
            ProtocolError: a location does not lie in a segment that this stub was told of.
        """
        bases: List[Any] = []
        for segment_id, offset, nbytes in blocks:
            segment = self._locate(segment_id, offset, nbytes)
            if type(segment) is not Segment:
                bases.append(segment.lend(offset, nbytes))  # type: ignore[attr-defined]
                continue
            base = self._view_privately(segment, offset, nbytes) if nbytes >= LARGE_BYTES else None
            if base is None:
                base = np.frombuffer(bytearray(segment.memory[offset : offset + nbytes]), np.uint8)
            bases.append(base)
        return bases

    def let_go(self, block: Place, base: Optional[np.ndarray]) -> bool:
        """Call when a request is answered and every reference of the runtime's own is dropped; ``base`` is what is left of it.

        Returns:
            Whether the model still views the block, which is then pinned until it no longer does.
        """
        if base is None or not self._is_shared(base):
            return False
        self.keep(block, base)
        return True

    def keep(self, block: Place, base: Any) -> None:
        """Gives the block back when the last view of ``base`` is collected; at once if it is a copy."""
        key = block[:2]
        if not isinstance(base, np.ndarray):
            base.lease.settle()
            return
        if not self._is_shared(base):
            self.dropped.append(key)
            return
        pin = (key, id(base))
        home = self._homes.get(base.__array_interface__["data"][0])
        self._pins[pin] = weakref.ref(base, lambda _: self._unpin(pin, home))

    def forked(self) -> None:
        """In a process that was forked from the stub: its copy of the lock may be held by a thread that it has no copy of."""
        self._lock = threading.RLock()

    def _unpin(self, pin: Tuple[BlockKey, int], home: Optional[_Home]) -> None:
        if home is not None:
            self._move_out(home)  # first: as soon as it is given back, the block may come again
        self._pins.pop(pin, None)
        self.dropped.append(pin[0])

    def _is_shared(self, base: np.ndarray) -> bool:
        return isinstance(base.base, mmap.mmap)

    def _locate(self, segment_id: int, offset: int, nbytes: int) -> Segment:
        if segment_id not in self.segments:
            self._fetch(segment_id)
        return self.segments.locate(segment_id, offset, nbytes)

    def _view_privately(self, segment: Segment, offset: int, nbytes: int) -> Optional[np.ndarray]:
        # What is written to one view must not be seen in another, so each of the same block is in a mapping of its own.
        for index in range(_PRIVATE_VIEWS):
            try:
                mapping = segment.private(index)
            except OutOfSharedMemory:
                return None
            base = np.ndarray((nbytes,), np.uint8, mapping, offset)
            if self._settle_in(base, (segment.id, offset), None, private=mapping):
                return base
        return None

    # What is sent

    def empty(self, nbytes: int) -> np.ndarray:
        """Memory for an output, UINT8 [nbytes], in the arena; given back when its last view and its last response are gone.

        Raises:
            OutOfSharedMemory: no room.
        """
        return self._new(nbytes, is_input=False)

    def _new(self, nbytes: int, is_input: bool) -> np.ndarray:
        with self._lock:
            block = self.arena.allocate(nbytes)
        base = np.ndarray((nbytes,), np.uint8, block.segment.memory, block.offset)
        weakref.finalize(base, self.arena.dropped.append, block).atexit = False
        self._settle_in(base, block.key, block, is_input)
        return base

    def release(self, keys: Sequence[BlockKey]) -> None:
        """Takes back blocks of the arena that the parent has done with.

        Raises:
            ProtocolError: a block that is not in use.
        """
        others = []
        with self._lock:
            for key in keys:
                block = self.arena.find(key)
                if block is None:
                    others.append(key)
                else:
                    block.release()
        if others:
            if self._exports is None or not all(key in self._exports for key in others):
                raise ProtocolError(f"block {others[0]} is given back but not in use")
            self._exports.release(others)

    def shed(self, keep: int, at_once: bool = False) -> List[int]:
        """Drops segments of the arena that are in no use (see ``Arena.shed``); returns their ids, which the server has to be told. In any
        thread: while another one needs the arena, which may be for long, nothing of it is in no use."""
        if not self._lock.acquire(False):
            return []
        try:
            dropped = self.arena.shed(keep, at_once)
            for segment in dropped:
                self.segments.pop(segment.id, None)
                segment.discard()
        finally:
            self._lock.release()
        return [segment.id for segment in dropped]

    def shed_exports(self) -> List[int]:
        """The same with device memory, which is freed when the server says so."""
        return [] if self._exports is None else self._exports.shed()

    def free_bytes(self) -> int:
        """How much of the arena is free."""
        with self._lock:
            self.arena.collect()
            return self.arena.free_bytes()

    def write(self, record: bytes) -> BlockKey:
        """Puts a record that is too long for the ring into a block, which the parent gives back."""
        with self._lock:
            block = self.arena.allocate(len(record))
        block.segment.memory[block.offset : block.offset + len(record)] = record
        return block.key

    def place(self, tensors: Sequence[Tuple[Any, Tensor]], goes_on: bool = False, on_device: int = 0) -> Placed:
        """Puts tensors, as (name, tensor), where others can read them: by reference if they are in shared memory, else by one copy.

        An array of the model's own is read once: what is done to it afterwards does not change the tensor, however often it is sent. What
        ``empty`` made is sent as it lies there.

        Args:
            goes_on: the model goes on while others read, and may change a view of an input, which therefore has to be copied.
            on_device: who reads them takes device memory, too.

        Raises:
            OutOfSharedMemory: no room.
            TritonModelException: a tensor on a GPU cannot be copied.
        """
        blocks: List[BlockKey] = []
        outputs: List[Any] = [None] * len(tensors)
        small = []
        try:
            for index, (name, tensor) in enumerate(tensors):
                if tensor._on_device:
                    key = self._stage(tensor) if on_device else None
                    if key is not None:
                        outputs[index] = (name, tensor._dtype.code, tensor._shape, len(blocks), 0, tensor._nbytes)
                        blocks.append(key)
                        continue
                    tensor = self._on_host(tensor)
                    tensors = [*tensors[:index], (name, tensor), *tensors[index + 1 :]]
                if tensor._nbytes < REFERENCE_BYTES:
                    small.append(index)
                else:
                    home = self._share(tensor, goes_on)
                    start = _address(tensor) - home.start
                    outputs[index] = (name, tensor._dtype.code, tensor._shape, len(blocks), start, tensor._nbytes)
                    blocks.append(home.key)
            if small:
                blocks.append(self._copy([tensors[index] for index in small], small, outputs, len(blocks)))
        except BaseException:
            self.take_back(blocks)
            raise
        return Placed(blocks, outputs)

    def take_back(self, blocks: Sequence[BlockKey]) -> None:
        """Undoes ``place``: the response is not going to be sent."""
        exports = self._exports
        self.release([key for key in blocks if self.arena.find(key) is not None or (exports is not None and key in exports)])

    def _stage(self, tensor: Any) -> Optional[BlockKey]:
        """Puts a tensor that is on a GPU where others can read it there; None if it has to go through host memory."""
        if self._exports is None:
            if self.make_exports is None:
                return None
            self._exports = self.make_exports()
        key: Optional[BlockKey] = self._exports.stage(tensor._memory, tensor._offset, tensor._nbytes)
        return key

    def _on_host(self, tensor: Any) -> Tensor:
        """A copy of a tensor that is on a GPU: if it is large, where it can be sent from."""
        copy: Tensor = tensor._copied_to(
            self.empty(tensor._nbytes) if tensor._nbytes >= REFERENCE_BYTES else np.empty(tensor._nbytes, np.uint8)
        )
        return copy

    def _home(self, start: int, nbytes: int) -> Optional[_Home]:
        """Where in shared memory these bytes lie, if they do and others see there what the model sees."""
        for home in list(self._homes.values()):  # not tuple(), within which garbage may be collected, and so homes left
            if home.start <= start and start + nbytes <= home.end:
                return None if home.key[0] == _CLIENT or self._is_written(home, start, nbytes) else home
        return None

    def _is_written(self, home: _Home, start: int, nbytes: int) -> bool:
        """Whether one of these pages is in a copy-on-write mapping and has been written to (Documentation/admin-guide/mm/pagemap.rst)."""
        if home.private is None or home.faults == _page_faults():
            return False
        first = start // _PAGE
        count = (start + nbytes - 1) // _PAGE - first + 1
        try:
            if self._page_map is None:
                self._page_map = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            entries = np.frombuffer(os.pread(self._page_map, count * 8, first * 8), np.uint64)
        except OSError:
            return True
        # Bit 63: in memory. 62: swapped out. 61: a page of the file. A page of one's own is one of the former without the latter.
        state = entries >> np.uint64(61)
        return len(entries) != count or bool(np.any((state == 0b100) | (state == 0b010) | (state == 0b110)))

    def detach(self, blocks: List[BlockKey], key: BlockKey, base: np.ndarray) -> None:
        """Names a copy instead of a block of inputs: the model keeps a view of that, and may write to it while others read. Where
        there is no room for a copy, the model had better not."""
        try:
            copy = self.empty(base.size)
        except OutOfSharedMemory:
            return
        copy[:] = base
        home = self._homes[copy.__array_interface__["data"][0]]
        assert home.block is not None
        for index, named in enumerate(blocks):
            if named == key:
                with self._lock:
                    home.block.retain()
                    own = self.arena.find(key)
                    if own is not None:
                        own.release()
                blocks[index] = home.key

    def _share(self, tensor: Tensor, goes_on: bool) -> _Home:
        """Where a large tensor lies, once more lent; it is copied to the arena if it is not in shared memory, or may not stay there."""
        home = self._home(_address(tensor), tensor._nbytes)
        if home is None or (home.is_input and goes_on):
            base = self.empty(tensor._nbytes)
            home = self._homes[base.__array_interface__["data"][0]]
            assert home.block is not None
            start = home.block.offset
            # Assigning to a slice of the mapping copies straight out of the array's buffer.
            home.block.segment.memory[start : start + tensor._nbytes] = _contents(tensor)
            tensor._frozen = base
        # A borrowed block may be one of this arena's own, which another model returned.
        block = home.block or self.arena.find(home.key)
        if block is not None:
            with self._lock:
                block.retain()
        return home

    def _copy(self, tensors: Sequence[Tuple[Any, Tensor]], places: Sequence[int], outputs: List[Any], index: int) -> BlockKey:
        """Copies small tensors to one block, number ``index``, and describes them at ``places`` of ``outputs``."""
        offset = 0
        for place, (name, tensor) in zip(places, tensors):
            outputs[place] = (name, tensor._dtype.code, tensor._shape, index, offset, tensor._nbytes)
            offset += aligned(tensor._nbytes)
        with self._lock:
            block = self.arena.allocate(offset)
        memory, start = block.segment.memory, block.offset
        for place, (_, tensor) in zip(places, tensors):
            begin = start + outputs[place][4]
            memory[begin : begin + tensor._nbytes] = tensor._snapshot()
        return block.key

    def _settle_in(
        self, base: np.ndarray, key: BlockKey, block: Optional[Block], is_input: bool = False, private: Optional[mmap.mmap] = None
    ) -> bool:
        """Notes where a base lies; False if it is private and another base lies there, or is just leaving."""
        start = base.__array_interface__["data"][0]
        home = _Home(key, start, start + base.size, block, is_input, private, _page_faults() if private is not None else None)
        if private is None:
            self._homes[start] = home
        elif self._homes.setdefault(start, home) is not home:
            return False
        weakref.finalize(base, self._move_out, home).atexit = False
        return True

    def _move_out(self, home: _Home) -> None:
        """The last view of a base is gone."""
        if self._homes.get(home.start) is not home:
            return
        if home.private is not None and self._is_written(home, home.start, home.end - home.start):
            home.private.madvise(mmap.MADV_DONTNEED, home.key[1], home.start % _PAGE + home.end - home.start)
        # Last: that the view is gone is known to others before this, and the block may be back already.
        self._homes.pop(home.start, None)


def _page_faults() -> Tuple[int, ...]:
    """How many this process has had; another process, such as one that was forked from this, never has had the same."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return os.getpid(), usage.ru_minflt, usage.ru_majflt


def _contents(tensor: Tensor) -> Any:
    return tensor._array if tensor._data is None else tensor._wire()


def _address(tensor: Tensor) -> int:
    """Of the tensor's bytes as they are sent."""
    frozen = tensor._frozen
    if frozen is not None:
        return frozen.__array_interface__["data"][0]  # type: ignore[no-any-return]
    array: Any = tensor._array if tensor._data is None else tensor._data
    start: int = array.__array_interface__["data"][0]
    return start + tensor._offset
