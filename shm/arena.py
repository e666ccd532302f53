"""Arenas: blocks of shared memory that only their owner hands out.

One process allocates; the other gives a block back by message. So there is no lock in shared memory, and a process that is
killed anywhere leaves nothing locked.

Size classes stand four to the octave (64, 128, 192, 256, 320, 384, 448, 512, 640, ...), so at most a quarter of a block above
512 bytes is waste. A freed block keeps its class and goes to the top of its list: the next request gets pages that are mapped
and warm (a first touch of a page costs eight copies of it). Segments of which nothing was in use for a while go back to the system.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter_ns
from typing import Any, Callable, Deque, Dict, List, Optional, Protocol, Set, Tuple

import numpy as np

from .segment import PAGE, Segment

ALIGNMENT = 64
"""Every block and every tensor in a block begins on a cache line, which is what DLPack asks of a producer (256 at best)."""

LARGE_BYTES = 64 << 10
"""Blocks from this size on share no page with another, so that each can be mapped copy-on-write by itself."""

_NEAR_CLASSES = 4

_UNUSED = -1
"""As ``write_ns`` of a free block: it was in no use since ``shed`` looked."""

_TIMED_BYTES = 16 << 10
"""What is shorter is copied in a microsecond or less, which is not worth a look at the clock."""


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to the alignment of a tensor."""
    return (nbytes + ALIGNMENT - 1) & -ALIGNMENT


def size_class(nbytes: int) -> int:
    """Size in bytes of the smallest block that holds ``nbytes`` (0 counts as 1)."""
    step = 1 << max((nbytes - 1).bit_length() - 3, 6) if nbytes > 1 else ALIGNMENT
    return (nbytes + step - 1) & -step or ALIGNMENT


class Block:
    """``size`` bytes at ``offset`` of ``segment``; back on its arena's list when ``holders`` falls to 0. ``write_ns``: what writing large
    pieces to it has taken since it was allocated."""

    __slots__ = ("arena", "holders", "offset", "segment", "size", "write_ns")

    def __init__(self, arena: Arena, segment: Segment, offset: int, size: int) -> None:
        self.arena = arena
        self.segment = segment
        self.offset = offset
        self.size = size
        self.holders = 0
        self.write_ns = 0

    @property
    def key(self) -> Tuple[int, int]:
        """What names the block in a message: (segment id, offset)."""
        return self.segment.id, self.offset

    def retain(self) -> None:
        self.holders += 1

    def release(self) -> None:
        self.holders -= 1
        if self.holders == 0:
            self.arena._free[self.size].append(self)

    def write(self, offset: int, data: Any, nbytes: int) -> None:
        """Copies ``nbytes`` bytes of a contiguous buffer to ``offset`` in the block.

        Raises:
            OutOfSharedMemory: the segment is reserved as it fills, and there is no more memory.
        """
        segment = self.segment
        start = self.offset + offset
        end = start + nbytes
        if end > segment.reserved:
            segment.reserve(end)
        if nbytes < _TIMED_BYTES:
            segment.memory[start:end] = data
        else:
            began = perf_counter_ns()
            segment.memory[start:end] = data
            self.write_ns += perf_counter_ns() - began

    def array(self) -> np.ndarray:
        """The block as UINT8 [size]. Views of it have it as their ``base``, so a weak reference to it tells of the last one."""
        return np.ndarray((self.size,), np.uint8, self.segment.memory, self.offset)


class Held(Protocol):
    """A block, or a hold on one."""

    def release(self) -> None: ...


class Arena:
    """Allocates blocks from segments that ``grow`` supplies.

    Args:
        grow: called with the bytes needed; returns a segment of at least that size. Its errors pass through ``allocate``.
        quantum: the least number of bytes to ask for.
        reclaim: called before ``grow``; releases the blocks that have come back meanwhile.
    """

    def __init__(self, grow: Callable[[int], Segment], quantum: int, reclaim: Optional[Callable[[], None]] = None) -> None:
        self._grow = grow
        self._quantum = quantum
        self._reclaim = reclaim
        self._free: Dict[int, List[Block]] = {}
        self._blocks: Dict[Tuple[int, int], Block] = {}
        self._fresh: List[Tuple[Segment, int, int]] = []  # from here to there in the segment
        self._segments: Dict[int, Segment] = {}
        self._idle: Set[int] = set()
        self.dropped: Deque[Held] = deque()
        """Blocks whose last view was collected, in whatever thread: appending is all that a weakref callback may do."""

    def allocate(self, nbytes: int) -> Block:
        """A block of at least ``nbytes`` bytes, held once by the caller.

        Raises:
            OutOfSharedMemory: no free block, and no segment to be had.
        """
        if self.dropped:
            self.collect()
        free = self._free.get(nbytes)  # what asks often asks for a whole class
        if free:
            block = free.pop()
        else:
            size = size_class(nbytes)
            found = self._find(size)
            if found is None and self._reclaim is not None:
                self._reclaim()
                found = self._find(size)
            block = found or self._extend(size)
        block.holders = 1
        block.write_ns = 0
        return block

    def collect(self) -> None:
        """Releases the blocks whose views are gone."""
        while self.dropped:
            self.dropped.popleft().release()

    def find(self, key: Tuple[int, int]) -> Optional[Block]:
        """The block that a message names, if it is in use."""
        block = self._blocks.get(key)
        return block if block is not None and block.holders else None

    def add(self, segment: Segment) -> None:
        """Gives the arena a segment to carve blocks from."""
        self._segments[segment.id] = segment
        self._fresh.append((segment, 0, segment.size))

    def shed(self, keep: int, at_once: bool = False) -> List[Segment]:
        """Drops the segments of which nothing was in use since the last call, and returns them.

        Args:
            keep: so many bytes of segments, in any case, it still has afterwards, if it has them now.
            at_once: those of which nothing is in use now.
        """
        self.collect()
        if self.size <= keep:
            return []
        busy: Set[int] = set()
        recent: Set[int] = set()
        for block in self._blocks.values():
            if block.holders:
                busy.add(block.segment.id)
            elif block.write_ns != _UNUSED:
                recent.add(block.segment.id)
                block.write_ns = _UNUSED
        dropped: Dict[int, Segment] = {}
        before, self._idle = self._idle, set()
        kept = 0
        # Those that are kept are the small ones, which every request can use.
        for number, segment in sorted(self._segments.items(), key=lambda entry: entry[1].size):
            if kept < keep:
                kept += segment.size
            elif number in busy:
                continue
            elif at_once or (number in before and number not in recent):
                dropped[number] = segment
            else:
                self._idle.add(number)
        if dropped:
            self._drop(dropped)
        return list(dropped.values())

    @property
    def size(self) -> int:
        """Bytes of all its segments."""
        return sum([segment.size for segment in self._segments.values()])

    def free_bytes(self) -> int:
        """How many bytes are in no block that is in use."""
        return sum(size * len(free) for size, free in self._free.items()) + sum(end - start for _, start, end in self._fresh)

    def _drop(self, dropped: Dict[int, Segment]) -> None:
        for number in dropped:
            del self._segments[number]
        self._fresh = [piece for piece in self._fresh if piece[0].id not in dropped]
        self._blocks = {key: block for key, block in self._blocks.items() if key[0] not in dropped}
        for free in self._free.values():
            free[:] = [block for block in free if block.segment.id not in dropped]

    def _find(self, size: int) -> Optional[Block]:
        """A block from what there is: of that class, of a larger one, or of fresh memory."""
        free = self._free.get(size)
        return free.pop() if free else self._near(size) or self._carve(size)

    def _near(self, size: int) -> Optional[Block]:
        """A free block of one of the next larger classes: better than memory that nobody has touched."""
        for _ in range(_NEAR_CLASSES):
            size = size_class(size + 1)
            free = self._free.get(size)
            if free:
                return free.pop()
        return None

    def _carve(self, size: int) -> Optional[Block]:
        """A block from memory that was in none yet."""
        fresh = self._fresh
        alignment = PAGE if size >= LARGE_BYTES else ALIGNMENT
        index = next((i for i, (_, start, end) in enumerate(fresh) if end - (start + -start % alignment) >= size), None)
        if index is None:
            return None
        segment, start, end = fresh[index]
        offset = start + -start % alignment
        fresh[index : index + 1] = [(segment, offset + size, end)] if end - offset - size >= ALIGNMENT else []
        if offset - start >= ALIGNMENT:
            fresh.append((segment, start, offset))
        block = Block(self, segment, offset, size)
        self._blocks[block.key] = block
        self._free.setdefault(size, [])
        return block

    def _extend(self, size: int) -> Block:
        """A block from a segment that is made for it."""
        # Added only when it is there: a stub that waits for its segment may be given others first, and adds them.
        self.add(self._grow(max(size, self._quantum)))
        block = self._carve(size)
        assert block is not None
        return block
