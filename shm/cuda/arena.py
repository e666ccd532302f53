"""Division of device memory that is exported: which bytes of which segment are whose.

Opening an exported segment takes a process milliseconds, so a segment is exported once and tensors are copied into it. Device memory is
scarce and the sizes of tensors differ by six orders of magnitude, so a block is as long as its tensor, and neighbours that are free
become one again. A segment in which nothing lies is given up when it is idle, or when its room is needed for a larger one. (The arenas of host memory keep classes of sizes instead: theirs is cheap, and warm pages are worth more.)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Dict, List, Optional, Set, Tuple

UNIT = 512
"""Every block begins at a multiple of it and is one long, in bytes: what CUDA allocates itself is as well aligned."""

GRANULE = 2 << 20
"""Segments are multiples of it: smaller allocations share a page of the GPU with others, which an importer would see too
(CUDA Programming Guide, 4.15.1)."""

Place = Tuple[int, int]
"""(segment, offset)."""


def in_units(nbytes: int) -> int:
    """``nbytes`` as a block has them; 0 takes one unit."""
    return max(-(-nbytes // UNIT), 1) * UNIT


def segment_bytes(nbytes: int, quantum: int) -> int:
    """How large a segment has to be that is made for a block of ``nbytes`` bytes."""
    return -(-max(in_units(nbytes), quantum) // GRANULE) * GRANULE


class DeviceArena:
    """Knows what is free; touches no memory. Not for several threads at once."""

    def __init__(self) -> None:
        self._free: Dict[int, List[Tuple[int, int]]] = {}  # of each segment, by offset: (offset, end), no two of them adjacent
        self._sizes: Dict[int, int] = {}
        self._taken: Dict[Place, int] = {}
        self._idle: Set[int] = set()

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.values())

    @property
    def taken(self) -> int:
        """Bytes in blocks."""
        return sum(self._taken.values())

    def __contains__(self, place: Place) -> bool:
        """Whether a block that is in use begins there."""
        return place in self._taken

    def add(self, segment: int, size: int) -> None:
        """A new segment, all of it free."""
        self._sizes[segment] = size
        self._free[segment] = [(0, size)]

    def take(self, nbytes: int) -> Optional[Place]:
        """A block; None if there is nowhere room for it. The first that fits, so that what comes and goes stays at the front."""
        need = in_units(nbytes)
        for segment, free in self._free.items():
            for index, (offset, end) in enumerate(free):
                if end - offset >= need:
                    free[index : index + 1] = [(offset + need, end)] if end - offset > need else []
                    self._taken[segment, offset] = need
                    self._idle.discard(segment)
                    return segment, offset
        return None

    def give(self, place: Place) -> None:
        """Takes a block back.

        Raises:
            KeyError: none that is in use begins there.
        """
        size = self._taken.pop(place)
        segment, offset = place
        free = self._free[segment]
        index = bisect_left(free, (offset, offset))
        end = offset + size
        if index < len(free) and free[index][0] == end:
            end = free.pop(index)[1]
        if index and free[index - 1][1] == offset:
            offset = free.pop(index - 1)[0]
        insort(free, (offset, end))

    def shed(self) -> List[int]:
        """Drops the segments in which nothing lay since the last call, and returns them."""
        unused = self._unused()
        dropped = [segment for segment in unused if segment in self._idle]
        self._idle = set(unused)
        self._drop(dropped)
        return dropped

    def make_room(self, nbytes: int) -> List[int]:
        """Drops segments in which nothing lies, the largest first, until they have so many bytes together, and returns them; none of them if
        all together have not."""
        dropped: List[int] = []
        for segment in sorted(self._unused(), key=self._sizes.__getitem__, reverse=True):
            if nbytes <= 0:
                break
            nbytes -= self._sizes[segment]
            dropped.append(segment)
        if nbytes > 0:
            return []
        self._drop(dropped)
        return dropped

    def _unused(self) -> List[int]:
        return [segment for segment, free in self._free.items() if free == [(0, self._sizes[segment])]]

    def _drop(self, segments: List[int]) -> None:
        for segment in segments:
            del self._free[segment], self._sizes[segment]
            self._idle.discard(segment)
