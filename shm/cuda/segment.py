"""Segments of device memory, as everybody sees them who has no GPU: numbers and a handle.

They are numbered like those of host memory, and blocks in them are lent, passed on and given back in the same way. The server never opens
one: it has no context on any GPU.
"""

from __future__ import annotations

from typing import NoReturn

from ..errors import ProtocolError
from ..segment import Segment
from .arena import GRANULE
from .driver import HANDLE_BYTES, UUID_BYTES


class DeviceSegment(Segment):
    """``size`` bytes on the GPU ``uuid``, which other processes open by ``handle``. Its ``memory`` is nowhere in this process: asking for it
    is a ProtocolError.

    Raises:
        ProtocolError: what an exporter says of it cannot be.
    """

    __slots__ = ("_there", "handle", "uuid")

    def __init__(self, segment_id: int, size: int, uuid: bytes, handle: bytes) -> None:
        self.fd = None
        if type(size) is not int or size <= 0 or size % GRANULE or type(uuid) is not bytes or len(uuid) != UUID_BYTES:
            raise ProtocolError(f"device memory of {size!r} bytes on {uuid!r}")
        if type(handle) is not bytes or len(handle) != HANDLE_BYTES:
            raise ProtocolError(f"handle {handle!r} of device memory")
        self.id = segment_id
        self.size = size
        self.reserved = 0
        self.uuid = uuid
        self.handle = handle
        self._there = True

    @property
    def shareable(self) -> bool:
        """Whether the process that exports it is still there, and has it in use."""
        return self._there

    def close(self) -> None:
        """The process that exports it has ended, or has taken it out of use."""
        self._there = False

    def __getattr__(self, name: str) -> NoReturn:
        raise ProtocolError(f"segment {self.id} is memory of a GPU: it has no {name} in this process")


def spelled(uuid: bytes) -> str:
    """A UUID as nvidia-smi prints it."""
    text = uuid.hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
