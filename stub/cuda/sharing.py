"""How a stub comes by what others have on GPUs, and passes on what its model has there."""

from __future__ import annotations

from typing import Any, Callable, Dict

from ..inbox import Inbox
from ..memory import StubMemory
from ..outbox import Outbox
from ..server_link import ServerLink
from .exports import Exports
from .region import DeviceRegion
from .releases import releases
from .segment import ImportedSegment

EXPORT, REFUSED = "device.export", "device.refused"


def make_exports(
    link: ServerLink, inbox: Inbox, memory: StubMemory, outbox: Outbox, settings: Dict[str, Any], warn: Callable[[str], None]
) -> Exports:
    """What puts tensors where others can read them.

    Args:
        settings: ``device_segment_bytes``, the least size of a segment, and ``device_limit_bytes``, of all of them on a device.
    """

    def ask(uuid: bytes, nbytes: int, handle: bytes, pattern: bytes) -> int:
        number: int = link.ask(EXPORT, uuid, nbytes, handle, pattern)
        return number

    _connect(memory, outbox)
    return Exports(ask, link.dropped, link.segments, inbox.look, warn, settings["device_segment_bytes"], settings["device_limit_bytes"])


def import_segment(
    link: ServerLink, memory: StubMemory, outbox: Outbox, number: int, nbytes: int, uuid: bytes, handle: bytes
) -> ImportedSegment:
    """A segment of another's that the server has announced."""

    def closed(segment: ImportedSegment, done: bool) -> None:
        if not done:
            link.segments[number] = segment  # the server will say once more that it is to be closed
        link.unmapped(number, done)

    _connect(memory, outbox)
    return ImportedSegment(number, nbytes, uuid, handle, lambda segment, why: link.tell(REFUSED, segment, why), closed)


def import_region(memory: StubMemory, outbox: Outbox, name: str, nbytes: int, uuid: bytes, handle: bytes) -> DeviceRegion:
    """Memory of a GPU that a client has registered."""
    _connect(memory, outbox)
    return DeviceRegion(name, nbytes, uuid, handle)


def _connect(memory: StubMemory, outbox: Outbox) -> None:
    memory.has_devices = True
    releases.dropped = memory.dropped
    releases.tell = lambda: outbox.post(())
