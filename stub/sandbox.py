"""The sandbox of a stub: what its model may take of the machine, and as whom it runs. Entered once, before any code of the model."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

_PR_SET_NO_NEW_PRIVS = 38


def enter(settings: Dict[str, Any], prctl: Callable[..., int]) -> None:
    """Puts this process into a sandbox, for good.

    Args:
        settings: any of ``cgroup`` (a directory), ``rlimits`` (values by the names of ``resource``), ``user`` ([uid, gid, groups]),
            ``no_new_privs``.
        prctl: prctl(2).

    Raises:
        OSError: the system refuses; ``strerror`` says what.
    """
    cgroup = settings.get("cgroup")
    if cgroup:
        with _saying(f"cgroup '{cgroup}'"), open(os.path.join(cgroup, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write("0")
    for name, value in settings.get("rlimits", {}).items():
        with _saying(f"{name} {value}"):
            resource.setrlimit(getattr(resource, name), (value, value))
    user = settings.get("user")
    if user:
        uid, gid, groups = user
        with _saying(f"user {uid}, group {gid}"):
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    if settings.get("no_new_privs") and prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(0, "no_new_privs is refused")


@contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else 0
        why = error.strerror if isinstance(error, OSError) else error
        raise OSError(code, f"its sandbox cannot be made: {what}: {why}") from error
