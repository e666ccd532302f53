"""Device memory that its exporter has taken out of use, until no process has it open any more and it can be freed.

To free an exported allocation that another process still has open is undefined (cuMemFree, cuIpcCloseMemHandle in cuda.h). So:

    1. The exporter finds that nothing lies in a segment, puts nothing there from then on, and says so (SHED).
    2. Everybody who was told of the segment is told to close it (FORGET), and answers when that is done (UNMAPPED). The end of a process
       is as good an answer.
    3. When the last has answered, the exporter is told (FORGET), and frees it.

Blocks are named in rings and segments in control sockets, which are not in order with each other. Nobody is named a block of a segment that
it has closed, all the same, because of what step 1 has waited for: a block is in use at the exporter from before it is first named until
the server gives it back; the server gives it back when everybody has whom it was passed on to; and a process gives a block back when it has
read the record that names it, and nothing there reads the block any more. So when nothing lies in a segment, no record anywhere names
a block of it, and there is none to come. The announcement of a segment, at last, and the request to close it come by one socket, in order.

An exporter that does not keep to this harms those who read what it made, as it could without: what is lent to a process is not taken from
it here either (``Loans.forgettable``).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Set

from ..shm.control import FORGET
from ..shm.cuda.segment import DeviceSegment
from ..shm.errors import ProtocolError
from .log import about

if TYPE_CHECKING:
    from .core import Core
    from .instance import Instance

_PATIENCE_SECONDS = 10.0
"""Nobody waits, but the log is told who does not answer for so long."""

logger = logging.getLogger(__name__)


class _Retired:
    """``importers``: those that may have it open. ``again``: those of them that could not close it. ``late_at``: when that is worth a line in
    the log."""

    __slots__ = ("again", "exporter", "importers", "late_at", "segment")

    def __init__(self, exporter: Instance, segment: DeviceSegment, late_at: float) -> None:
        self.exporter = exporter
        self.segment = segment
        self.importers: Set[Instance] = set()
        self.again: Set[Instance] = set()
        self.late_at = late_at


class RetiredMemory:
    """In the server's loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._retired: Dict[int, _Retired] = {}

    def of(self, exporter: Instance) -> List[DeviceSegment]:
        """What an instance has taken out of use and cannot free yet."""
        return [retired.segment for retired in list(self._retired.values()) if retired.exporter is exporter]

    def add(self, exporter: Instance, segments: Sequence[DeviceSegment]) -> None:
        """An instance has taken segments out of use."""
        late_at = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        added = {segment.id: _Retired(exporter, segment, late_at) for segment in segments}
        self._retired.update(added)
        for segment in segments:
            segment.close()
        for instance in self._core.watcher.instances:
            if instance is not exporter:
                with instance.model.lock:
                    known = instance.channel.loans.known.intersection(added)
                for number in known:
                    added[number].importers.add(instance)
                if known:
                    instance.forget(known)
        for number in added:
            self._free_if_closed(number)

    def unmapped(self, importer: Instance, number: Any, done: Any) -> None:
        """An instance has closed a segment, or could not.

        Raises:
            ProtocolError: it does not say which.
        """
        if type(number) is not int:
            raise ProtocolError(f"device memory {number!r} is closed")
        retired = self._retired.get(number)
        if retired is None or importer not in retired.importers:
            return  # its exporter has ended
        if done:
            retired.importers.remove(importer)
            self._free_if_closed(number)
        else:
            retired.again.add(importer)

    def gone(self, instance: Instance) -> None:
        """The process of an instance has ended: what it had open is closed, and what it exported is freed."""
        for number, retired in list(self._retired.items()):
            if retired.exporter is instance:
                del self._retired[number]
            else:
                retired.importers.discard(instance)
                retired.again.discard(instance)
                self._free_if_closed(number)

    def look(self) -> None:
        """Asks those once more that could not close something. Call it now and then."""
        now = asyncio.get_running_loop().time()
        for number, retired in self._retired.items():
            for instance in retired.again:
                instance.process.tell((FORGET, (number,)))
            retired.again.clear()
            if now >= retired.late_at:
                retired.late_at = float("inf")
                text = "device memory of instance '%s' (%s bytes) cannot be freed, because it is still open in %s"
                who = ", ".join(sorted(f"'{instance.name}' (pid {instance.pid})" for instance in retired.importers))
                logger.warning(text, retired.exporter.name, retired.segment.size, who, extra=about(retired.exporter.facts))

    def _free_if_closed(self, number: int) -> None:
        if not self._retired[number].importers:
            self._retired.pop(number).exporter.process.tell((FORGET, (number,)))
