"""DLPack for memory of a GPU: what has to be waited for before it is taken over (spec 1.4.2)."""

from __future__ import annotations

from typing import Any, Callable

from .devices import here
from .memory import DeviceMemory


def when_complete(ordinal: int, ask: Callable[[int], Any]) -> Any:
    """The capsule that ``ask`` gets from a producer for a stream of the runtime's own, when everything is done that the producer has ordered
    before that stream. The device of that number is current meanwhile: torch exports from no other.

    Raises:
        TritonModelException: there is no such device, or waiting failed.
    """
    devices = here()
    device = devices.get(ordinal)
    with devices.on(device) as driver:
        capsule = ask(device.waiting)
        driver.finish(device.waiting)
    return capsule


def adopt(ordinal: int, address: int, nbytes: int, is_complete: bool, take: Callable[[], Any]) -> DeviceMemory:
    """The memory of a capsule.

    Args:
        is_complete: otherwise it is not known on which stream it is written to, and everything on the device is waited for.
        take: consumes the capsule, and returns what keeps its memory.

    Raises:
        TritonModelException: there is no such device, or waiting failed; the capsule is not consumed.
    """
    devices = here()
    device = devices.get(ordinal)
    if not is_complete and nbytes:
        with devices.on(device) as driver:
            driver.finish_all()
    return DeviceMemory(devices, device, address, nbytes, take())
