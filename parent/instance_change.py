"""Other instances for a model that serves, without loading it again (spec 5.3): what changed is its instance groups alone."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, List, Sequence

from ..shm.errors import OutOfSharedMemory
from . import model_config
from .instance import Instance, LoadFailed
from .lifecycle import State
from .log import about
from .model_config import ConfigError
from .placement.instance_groups import instance_specs

if TYPE_CHECKING:
    from .model import Model

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 60.0
_KILL_SECONDS = 5.0
_LOOK_SECONDS = 0.02


async def add_to_all(models: Sequence[Model], config: Any) -> None:
    """Gives the versions of a model the instances that another configuration of it has and they have not, and that configuration's groups.
    If that cannot be done for all of them, nothing is changed.

    Args:
        config: complete, and different from theirs in the instance groups alone.

    Raises:
        ConfigError: the groups cannot be.
        LoadFailed: an instance did not load.
    """
    configs = [_regrouped(model, config) for model in models]
    added: List[List[Instance]] = []
    try:
        for model, changed in zip(models, configs):
            added.append(await _add_instances(model, changed))
    except (ConfigError, LoadFailed):
        for model, instances in zip(models, added):
            await remove_instances(model, instances, DRAIN_SECONDS)
        raise
    for model, changed, instances in zip(models, configs, added):
        model.regroup(changed)
        model.supervisor.tend(instances)


async def _add_instances(model: Model, config: Any) -> List[Instance]:
    """Starts the instances that a configuration has and the model has not, and waits until all of them serve.

    Raises:
        ConfigError: the rate limiter could never let one of them execute.
        LoadFailed: one of them did not load. All that were started have ended.
    """
    present = {instance.spec for instance in _staying(model)}
    placed = [(spec, placement) for spec, placement in model.server.place(config) if spec not in present]
    added: List[Instance] = []
    try:
        for spec, placement in placed:
            instance = Instance(model, spec, placement)
            instance.start()
            added.append(instance)
            model.instances = [*model.instances, instance]
        for instance in added:
            await asyncio.shield(instance.loaded)
    except (LoadFailed, OutOfSharedMemory, OSError) as error:
        await remove_instances(model, added, DRAIN_SECONDS)
        if isinstance(error, LoadFailed):
            raise
        raise LoadFailed(f"Unable to initialize shared memory: {error}") from error
    return added


def surplus(model: Model) -> List[Instance]:
    """The instances that the model has and its configuration has not."""
    wanted = set(instance_specs(model.config))
    return [instance for instance in _staying(model) if instance.spec not in wanted]


def _regrouped(model: Model, config: Any) -> Any:
    """The model's configuration with the instance groups of another one, which is complete.

    Raises:
        ConfigError: they cannot be.
    """
    changed = type(config)()
    changed.CopyFrom(model.config)
    changed.ClearField("instance_group")
    changed.instance_group.extend(config.instance_group)
    model_config.check(changed, model.name)
    return changed


async def remove_instances(model: Model, instances: List[Instance], seconds: float) -> None:
    """Ends instances: they get no more requests, but for those of the sequences that they have, finish them, and finalize, within
    ``seconds``."""
    model.supervisor.release(instances)
    alive = [instance for instance in instances if not instance.ended.done()]
    for instance in alive:
        model.retire(instance)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while any(map(model.has_work, alive)) and loop.time() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)
    for instance in alive:
        instance.finalize()
    if alive:
        await asyncio.wait([instance.ended for instance in alive], timeout=max(deadline - loop.time(), _KILL_SECONDS))
    late = [instance for instance in instances if not instance.ended.done()]
    for instance in late:
        text = "instance '%s' (pid %s) did not end in time and is killed"
        logger.warning(text, instance.name, instance.pid, extra=about(instance.facts))
        instance.kill()
    if late:
        await asyncio.wait([instance.ended for instance in late], timeout=_KILL_SECONDS)
    model.instances = [instance for instance in model.instances if instance not in instances]


def _staying(model: Model) -> List[Instance]:
    """Without those that are on their way out, and those that are kept in reserve."""
    return [instance for instance in model.instances if instance.state not in _LEAVING and not instance.in_reserve]


_LEAVING = (State.DRAINING, State.STOPPING, State.STOPPED, State.FAILED)
