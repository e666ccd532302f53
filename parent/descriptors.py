"""File descriptors: how many this process may have, and how many of them connections may take."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

_KEPT = 1024
"""For models, their shared memory and libraries: so many are kept back, or half of all where that is less."""


def raise_limit() -> None:
    """Lets this process, and no stub that runs already, have as many as its hard limit permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.info("the limit of open files stays at %d: %s", soft, error)


def affordable(wanted: int) -> int:
    """How many connections may be open, of ``wanted`` ones, or of any number for 0."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 30
    most = max(soft - _KEPT, soft // 2)
    return min(wanted, most) if wanted else most
