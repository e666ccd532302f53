"""The shared memory that an instance has for its outputs: what the server gives it, and what it gives back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Optional, Tuple

from ..shm.control import NO_ROOM, SHED
from ..shm.cuda.segment import DeviceSegment
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.segment import EAGER_BYTES, Segment
from .log import about
from .memory_limits import LIMIT_PARAMETER

if TYPE_CHECKING:
    from .instance import Instance

_MOST_SEGMENTS = 1024
"""Each takes two descriptors here and two in the stub."""

_QUIET_SECONDS = 10.0
"""After a line in the log about a refusal there is none about the next ones for so long."""

logger = logging.getLogger(__name__)


class OutputMemory:
    """In the server's loop. The stub owns the arena; what is here are the segments that it consists of (``Loans.outputs``).

    Args:
        limit: of the bytes of all segments.
    """

    def __init__(self, instance: Instance, limit: int) -> None:
        self._instance = instance
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._growing = False
        self._shedding = False
        self._quiet_until = 0.0

    @property
    def held(self) -> int:
        """Bytes of its segments."""
        return sum([segment.size for segment in self._instance.segments])

    def on_grow(self, nbytes: Any) -> None:
        """The stub asks for another segment, and waits for it.

        Raises:
            ProtocolError: for what is no size, or before it has what it asked for.
        """
        if type(nbytes) is not int or nbytes <= 0:
            raise ProtocolError(f"the stub asks for {nbytes!r} bytes of shared memory")
        if self._growing:
            raise ProtocolError("the stub asks for more shared memory before it has what it asked for")
        reason = self._excess(nbytes)
        if reason:
            self._refuse(reason)
        elif nbytes <= EAGER_BYTES:
            self._give(nbytes, *_made(self._instance.model.server.next_segment_id(), nbytes))
        else:
            # To reserve a gigabyte takes a second, for which the server's loop does not wait.
            self._growing = True
            making = self._loop.run_in_executor(None, _made, self._instance.model.server.next_segment_id(), nbytes)
            making.add_done_callback(lambda made: None if made.cancelled() else self._give(nbytes, *made.result()))

    def shed(self) -> None:
        """Has the stub look for segments that it has not used since it last looked, unless it is at it."""
        keep = self._instance.model.server.options.backend.shm_default_byte_size
        if not self._shedding and (self.held > keep or self._instance.device_segments):
            self._shedding = True
            with self._instance.model.lock:
                self._give_back()
            self._instance.process.tell((SHED, keep))

    def _give_back(self) -> None:
        """Blocks that nobody here needs any more, and that wait for company."""
        channel = self._instance.channel
        if channel.loans.releases and self._instance.state.talks and not self._instance.broken:
            try:
                channel.flush_releases()
            except ProtocolError as error:
                self._loop.call_soon(self._instance.on_violation, str(error))

    def on_shed(self, segments: Any) -> None:
        """The stub says which segments it has dropped.

        Raises:
            ProtocolError: they are not its own.
        """
        self._shedding = False
        loans = self._instance.channel.loans
        with self._instance.model.lock:
            for number in segments:
                if type(number) is not int or number not in loans.outputs:
                    raise ProtocolError(f"segment {number!r} is given back but is not the stub's")
            # The descriptor of one goes when nobody here reads what lies in it any more.
            dropped = [loans.outputs.pop(number) for number in set(segments)]
            loans.known.difference_update(segments)
        server = self._instance.model.server
        on_device = [segment for segment in dropped if isinstance(segment, DeviceSegment)]
        if on_device:
            server.device_memory.retired.add(self._instance, on_device)
        if len(dropped) > len(on_device):
            server.forget([segment.id for segment in dropped if not isinstance(segment, DeviceSegment)])

    def _give(self, nbytes: int, segment: Optional[Segment], reason: str) -> None:
        self._growing = False
        if not self._instance.state.alive:
            return
        if segment is None:
            self._refuse(f"{self._asks(nbytes)}: {reason}")
        else:
            self._instance.give(segment)

    def _asks(self, nbytes: int) -> str:
        model, instance = self._instance.model.name, self._instance.name
        return f"model '{model}', instance '{instance}' needs {nbytes} bytes more of shared memory for outputs"

    def _excess(self, nbytes: int) -> str:
        """Why so many bytes more are too many; nothing if they are not."""
        held, count = self.held, len(self._instance.segments)
        asks = self._asks(nbytes)
        if held + nbytes > self._limit:
            return (
                f"{asks}, but has {held} of the {self._limit} bytes that it may have: raise the model's parameter '{LIMIT_PARAMETER}', or "
                "--shm-limit-per-instance, or have the model keep less"
            )
        if count >= _MOST_SEGMENTS:
            return f"{asks}, but has {held} in {count} pieces already: raise --backend-config=python,shm-growth-byte-size=..."
        return ""

    def _refuse(self, reason: str) -> None:
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            logger.error("%s", reason, extra=about(self._instance.facts))
        self._instance.process.tell((NO_ROOM, reason))


def _made(number: int, nbytes: int) -> Tuple[Optional[Segment], str]:
    """A segment, or why there is none."""
    try:
        return Segment.create(number, nbytes), ""
    except OutOfSharedMemory as error:
        return None, str(error)
