"""One version of one model: how its instances come and go."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any, List, Sequence

from ..shm.errors import OutOfSharedMemory
from . import repository
from .environments import environment
from .errors import Unavailable
from .exposure import without_paths
from .instance import Instance, LoadFailed
from .lifecycle import State
from .log import about
from .memory_limits import instance_limit
from .repository import ModelFiles
from .roster import Roster
from .sandbox.config import NO_SANDBOX
from .sandbox.prepare import prepare as prepare_sandbox
from .shutdown import KILL_SECONDS, ModelBudget
from .supervision.config import supervision_of
from .supervision.supervisor import Supervisor
from .traffic import serves
from .warmup.warmup import Sample, read_samples, warm_up

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)


class Model(Roster):
    """``load`` starts its stubs; ``submit`` sends a request; ``stop`` ends it."""

    def __init__(self, server: Core, files: ModelFiles, version: int, config: Any) -> None:
        super().__init__(server, files, version, config)
        self.file = repository.model_file(server.options.backend_directory, files, version, config)
        self.environment = environment.Environment(None, {})
        self.sandbox = NO_SANDBOX
        self.instance_limit = instance_limit(config, server.options.shared_memory)
        self.warmup: Sequence[Sample] = ()
        """What an instance executes when it has loaded."""
        self.supervisor = Supervisor(self, supervision_of(config))

    @property
    def ready(self) -> bool:
        """Whether an instance is live, and the model is not being unloaded."""
        return not self._stopping and any(map(serves, self.instances))

    @property
    def takes_requests(self) -> bool:
        return not self._stopping and (self._live > 0 or self._expected)

    async def check_ready(self) -> None:
        """``ready``, and the model's own ``is_ready``, if it has one, in every live instance (spec 2.9).

        Raises:
            Unavailable: why not.
        """
        if not self.ready:
            raise Unavailable(self.unavailable_text())
        checked = [instance for instance in self.instances if instance.has_is_ready and instance.state is State.READY]
        if checked:
            await asyncio.gather(*(instance.check_ready() for instance in checked))

    async def load(self) -> None:
        """Starts every instance and waits until all of them serve.

        Raises:
            ConfigError: its environment cannot be had, or the rate limiter could never let it execute.
            LoadFailed: one of them did not load; the others are ended.
        """
        server = self.server
        self.environment = await self._loop.run_in_executor(
            server.preparing, environment.prepare, self.config, self.directory, server.ending
        )
        self.sandbox = await self._loop.run_in_executor(None, prepare_sandbox, self.server, self.config, self.directory)
        await self._read_labels()
        await self._read_initial_states()
        if self.config.model_warmup:
            self.warmup = await self._loop.run_in_executor(None, read_samples, self)
        if self._stopping:
            raise LoadFailed("the server is ending, or the model was unloaded")
        placed = self.server.place(self.config)
        try:
            self.begin_memory()
            for spec, placement in placed:
                instance = Instance(self, spec, placement)
                instance.start()
                self.instances.append(instance)
        except (OutOfSharedMemory, OSError) as error:
            await self.stop(0)
            raise LoadFailed(f"Unable to initialize shared memory: {error}") from error
        results = await asyncio.gather(*(instance.loaded for instance in self.instances), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            self.reason = str(failures[0])
            await self.stop(0)
            raise LoadFailed(self.reason) from failures[0]
        self.supervisor.tend(self.instances)

    async def stop(self, seconds: float) -> None:
        """Ends the instances: lets requests finish, then finalize, then SIGTERM, within ``seconds`` in all, then SIGKILL."""
        self._stopping = True
        if self.cached is not None:
            self.cached.drop()
        began, budget = self._loop.time(), ModelBudget.of(seconds)
        while self._busy() and self._loop.time() < began + budget.requests:
            await asyncio.sleep(0.005)
        self.supervisor.close()
        started = [instance for instance in self.instances if not instance.ended.done()]
        for instance in started:
            if seconds > 0:
                instance.finalize()
        if seconds > 0:
            await _wait_for_end(started, began + budget.finalize)
            for instance in _left(started):
                logger.warning("instance '%s' (pid %s) did not end in time", instance.name, instance.pid, extra=about(instance.facts))
                instance.process.signal(signal.SIGTERM)
            await _wait_for_end(started, began + budget.terminate)
        for instance in _left(started):
            if seconds > 0:
                text = "instance '%s' (pid %s) did not end in time and is killed"
                logger.warning(text, instance.name, instance.pid, extra=about(instance.facts))
            instance.kill()
        await _wait_for_end(started, self._loop.time() + KILL_SECONDS)
        self.close_memory()

    async def _read_initial_states(self) -> None:
        if self._sequences is None:
            return
        try:
            await self._loop.run_in_executor(None, self._sequences.read_initial_states)
        except OSError as error:
            raise LoadFailed(f"failed to open text file for read {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise LoadFailed(str(error)) from error

    def _busy(self) -> bool:
        return self._waiting > 0 or any(i.channel.in_flight and i.state in (State.READY, State.DRAINING) for i in self.instances)

    def begin_warmup(self, instance: Instance) -> bool:
        """Has an instance that has loaded execute the samples, if there are any; ``instance_ready`` follows."""
        if self.warmup:
            self.server.keep(self._loop.create_task(warm_up(instance, self.warmup)))
        return bool(self.warmup)

    def regroup(self, config: Any) -> None:
        """Takes on a configuration that differs in its instance groups; for the instances themselves see ``instance_change``."""
        self._set_config(config)

    def unavailable_text(self) -> str:
        """Why a request cannot be served."""
        text = self._unavailable_text()
        return text if self.server.options.expose_tracebacks else without_paths(text)

    def _unavailable_text(self) -> str:
        if self._stopping:
            return f"Request for unknown model: '{self.name}' is not found"
        if self.instances and all(instance.spec.passive for instance in self.instances):
            return f"model '{self.name}' has passive instances only, which are never scheduled"
        text = self.supervisor.unavailable_text()
        if text:
            return f"model '{self.name}' is not available: {text}"
        reasons = [instance.reason for instance in self.instances if instance.reason]
        return reasons[0] if reasons else f"Request for unknown model: '{self.name}' has no available versions"


def _left(instances: Sequence[Instance]) -> List[Instance]:
    """Those that have not ended."""
    return [instance for instance in instances if not instance.ended.done()]


async def _wait_for_end(instances: Sequence[Instance], until: float) -> None:
    left = _left(instances)
    if left:
        await asyncio.wait([instance.ended for instance in left], timeout=max(until - asyncio.get_running_loop().time(), 0))
