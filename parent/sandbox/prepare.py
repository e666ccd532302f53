"""Makes ready what the sandbox of a model's instances needs, before the first of them is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model_config import ConfigError
from .cgroups import CgroupError
from .config import Sandbox, parse_defaults, sandbox_of

if TYPE_CHECKING:
    from ..core import Core


def prepare(core: Core, config: Any, directory: str) -> Sandbox:
    """The sandbox for a model. Not in the event loop: it looks up users, which may be elsewhere.

    Args:
        directory: the model's.

    Raises:
        ConfigError: it cannot be had; with the reason.
    """
    try:
        sandbox = sandbox_of(config, parse_defaults(core.options.sandbox))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    cgroups = core.spawner.cgroups
    try:
        trial = cgroups.make(sandbox.cgroup)
    except CgroupError as error:
        raise ConfigError(f"the limits of cgroups that model '{config.name}' asks for cannot be set: {error}") from error
    if trial:
        cgroups.remove(trial)
    if sandbox.user is not None:
        core.workspace.hand_over(directory, sandbox.user.uid, sandbox.user.gid)
    return sandbox
