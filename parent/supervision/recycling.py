"""Instances that have grown old are replaced: the next one has loaded before the old one gets no more requests, and ends when it has finished
those that it has."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

from ..byte_size import size
from ..lifecycle import State
from ..log import about

if TYPE_CHECKING:
    from ..instance import Instance
    from .supervisor import Place, Supervisor

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often it is looked who has grown old."""

AGAIN_SECONDS = 60.0
"""After a replacement that did not load, before the next is tried. The old one serves on meanwhile."""


async def recycle(supervisor: Supervisor) -> None:
    """Replaces the instances of a model, one at a time, until it is cancelled."""
    loop = asyncio.get_running_loop()
    not_before = 0.0
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for place in supervisor.places:
            if loop.time() < not_before:
                break
            why = _worn_by(supervisor, place, loop.time())
            if why and not await supervisor.renew(place, why):
                not_before = loop.time() + AGAIN_SECONDS


def _worn_by(supervisor: Supervisor, place: Place, now: float) -> str:
    """Why an instance should be replaced; "" if it should not."""
    instance, limits = place.instance, supervisor.supervision
    if instance is None or instance.state is not State.READY or place.in_reserve or place.successor is not None:
        return ""
    if limits.max_requests and instance.channel.handed >= limits.max_requests:
        return f"it was handed {instance.channel.handed} requests of at most {limits.max_requests}"
    if limits.max_age and now - place.since >= limits.max_age:
        return f"it has served for {now - place.since:.0f} s of at most {limits.max_age:g}"
    if limits.max_rss:
        nbytes = private_bytes(instance.pid)
        if nbytes is not None and nbytes >= limits.max_rss:
            return f"{size(nbytes)} of its memory are resident, of at most {size(limits.max_rss)}"
    return ""


def private_bytes(pid: Optional[int]) -> Optional[int]:
    """The resident memory of a process, without what is shared memory; None if it has ended."""
    found = 0
    with suppress(OSError, ValueError):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(("RssAnon:", "RssFile:")):
                    found += int(line.split()[1]) << 10
    return found or None


def report_failure(instance: Instance, why: str) -> None:
    """A replacement did not load: the log is told."""
    text = "instance '%s' should be replaced, but the next one did not load, and it serves on; it is tried again in %.0f s: %s"
    logger.error(text, instance.name, AGAIN_SECONDS, why, extra=about(instance.facts))
