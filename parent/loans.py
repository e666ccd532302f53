"""What is lent between a stub and the server: blocks of others that the stub reads, and blocks of its own arena that are read here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Callable, Deque, Dict, Iterable, List, Sequence, Set, Tuple

from ..shm.cuda.segment import DeviceSegment
from ..shm.errors import ProtocolError
from ..shm.segment import Segment, SegmentTable
from .request import Lease, Lent, Loan

if TYPE_CHECKING:
    from .client_memory import RegionUse
    from .client_regions import ClientRegion

BlockKey = Tuple[int, int]
"""(segment id, offset)"""


class Loans:
    """All methods are called under the model's lock, in any thread.

    What the stub is lent with a request it gives back with the reply. What it still views then it keeps, as it does whatever it is lent
    otherwise, and gives it back by its key. What it lends goes back by its key as well, in ``releases``.

    Args:
        announce: tells the stub of a segment that it does not know yet.
        announce_region: tells it of a client's region.
    """

    def __init__(self, announce: Callable[[Segment], None], announce_region: Callable[[ClientRegion], None]) -> None:
        self._announce = announce
        self._announce_region = announce_region
        self.outputs = SegmentTable()
        """Segments of the stub's arena."""
        self.has_devices = False
        """Whether the stub was told of device memory, or has exported some."""
        self.known: Set[int] = set()
        """Segments of others, and regions of clients, that the stub was told of."""
        self.releases: Deque[BlockKey] = deque()
        """Blocks of the stub's arena that nobody here needs any more. Appended to in any thread."""
        self._lent: Dict[BlockKey, Lent] = {}
        self._lent_again: Dict[BlockKey, List[Lent]] = {}
        self._kept: Dict[BlockKey, List[Lent]] = {}

    # To the stub

    def lend(self, block: Lent, kept: bool = False) -> None:
        """Notes that the stub gets a block, which it has ``kept`` from the start if no reply brings it back."""
        key = block.key
        if key in self._lent:
            # The same tensor, or another part of its array, is an input of several requests, or it comes back as the output of a call.
            self._lent_again.setdefault(key, []).append(block)
        else:
            self._lent[key] = block
        if kept:
            self._kept.setdefault(key, []).append(block)
        segment = block.segment
        if segment.id not in self.known and segment.id not in self.outputs:
            self.known.add(segment.id)
            self.has_devices = self.has_devices or isinstance(segment, DeviceSegment)
            self._announce(segment)

    def lend_regions(self, use: RegionUse) -> None:
        """Sees to it that the stub knows the regions."""
        for region in use.regions():
            if region.id not in self.known:
                self.known.add(region.id)
                self._announce_region(region)

    def take_back(self, blocks: Sequence[Tuple[Lent, int]], kept: Sequence[int]) -> None:
        """Ends the loan of a request's blocks, but for those at the indices ``kept``."""
        for index, (block, _) in enumerate(blocks):
            if index in kept:
                self._kept.setdefault(block.key, []).append(block)
            else:
                self._take_back(block)

    def take_back_kept(self, key: BlockKey) -> None:
        """Ends the loan of a block that the stub kept.

        Raises:
            ProtocolError: it did not.
        """
        kept = self._kept.get(key)
        if kept is None:
            raise ProtocolError(f"block {key} is given back but was not kept")
        # Of several it is not said which. What the stub still views is within the largest.
        block = min(kept, key=_size)
        kept.remove(block)
        if not kept:
            del self._kept[key]
        self._take_back(block)

    def take_all_back(self) -> None:
        """After the stub's end."""
        for block in [*self._lent.values(), *(block for again in self._lent_again.values() for block in again)]:
            self._take_back(block)
        self._kept.clear()

    def _take_back(self, block: Lent) -> None:
        key = block.key
        again = self._lent_again.get(key) if self._lent_again else None
        if again is None:
            del self._lent[key]
        else:
            # Which of them it is matters: each has a holder of its own.
            if self._lent[key] is block:
                self._lent[key] = again.pop()
            else:
                again.remove(block)
            if not again:
                del self._lent_again[key]
        block.release()

    def forgettable(self, segments: Iterable[int]) -> Set[int]:
        """Those of the segments that the stub was told of and nothing that it was lent lies in; it is no longer taken to know them."""
        found = self.known.intersection(segments) - {segment for segment, _ in self._lent}
        self.known -= found
        return found

    # From the stub

    def borrow(self, key: BlockKey, nbytes: int) -> Tuple[Segment, Lease]:
        """The segment of a block that the stub names, one of its own or one that it was lent, and what gives the block back.

        Raises:
            ProtocolError: it is neither, or has less than ``nbytes`` bytes.
        """
        segment_id, offset = key
        if segment_id in self.outputs:
            return self.outputs.locate(segment_id, offset, nbytes), (self.releases.append, key)
        block = self._lent.get(key)
        if block is None:
            raise ProtocolError(f"block {key} of a tensor was not lent")
        if nbytes > block.size:
            block = next((other for other in self._lent_again.get(key, ()) if nbytes <= other.size), None)
            if block is None:
                raise ProtocolError(f"a tensor lies outside its block {key}")
        if isinstance(block, Loan):
            return block.segment, block.lease()
        block.retain()
        return block.segment, (block.arena.dropped.append, block)


def _size(block: Lent) -> int:
    return block.size
