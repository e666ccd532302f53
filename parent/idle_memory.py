"""Shared memory that is in no use goes back to the system, and device memory to the GPU."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)


async def give_back_idle(server: Core, seconds: float) -> None:
    """Has every model, and every instance, drop what it has not used between two looks, which are so many seconds apart. Goes on for ever."""
    while True:
        await asyncio.sleep(seconds)
        for model in list(server.alive):
            try:
                server.forget(model.shed(at_once=False))
                for instance in model.instances:
                    instance.shed()
            except Exception:
                # One that cannot be asked must not keep the others from being asked, now and later.
                logger.exception("idle memory of model '%s' could not be given back", model.name)
        server.device_memory.retired.look()
