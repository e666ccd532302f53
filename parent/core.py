"""The server without any front end: models loaded from repositories, found by name, stopped in order. Lives in one event loop."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Awaitable, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ..shm.errors import OutOfSharedMemory
from . import version
from .bls import Router
from .cache.response_cache import ResponseCache
from .client_memory import ClientMemory
from .devices import EXPORT, REFUSED, DeviceMemory
from .ensemble.servable import Ensemble
from .errors import InvalidArgument, NotFound, ServerError
from .idle_memory import give_back_idle
from .lifecycle import State
from .log_settings import LogSettings
from .lull import Lull
from .memory_limits import request_memory
from .metrics import exposition
from .metrics.custom import CustomMetrics
from .metrics.inference import NAMES as INFERENCE_NAMES
from .metrics.inference import InferenceMetrics
from .metrics.machine import NAMES as MACHINE_NAMES
from .metrics.machine import MachineMetrics
from .model_config import ConfigError
from .model_control import ModelControl
from .options import ServerOptions
from .placement.gpus import supported_gpus
from .placement.host_policy import HostPolicies
from .placement.instance_groups import InstanceSpec
from .placement.placement import Placement, place
from .scheduling.rate_limits import RateLimits, ResourceLimit
from .servable import Servable
from .spawner import Spawner
from .supervision.watcher import Watcher
from .tracing.settings import TraceSettings
from .tracing.tracer import Tracer
from .workspace import Workspace

if TYPE_CHECKING:
    from .instance import Instance

_METRIC = "metric."
_PREPARING = 64
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class ModelStatus(NamedTuple):
    """A row of the status table. ``version`` and ``instance`` are empty for a model that has none."""

    model: str
    version: str
    instance: str
    pid: str
    device: str
    state: str
    reason: str


class Core:
    """``start`` loads the models that are to be there from the start, ``stop`` ends all. ``models`` are those that can be found, by name
    and version, with those that did not load; a name in ``failures`` has a reason why it, or a version of it, did not."""

    def __init__(self, options: ServerOptions, spawner: Spawner) -> None:
        self.options = options
        self.spawner = spawner
        self.workspace = Workspace(spawner.remove_at_end)
        self.models: Dict[str, Dict[int, Servable]] = {}
        self.failures: Dict[str, str] = {}
        self.began = time.monotonic()
        self.started = False
        self.stopping = False
        self.ending = threading.Event()
        """Set when the server ends, for what works in other threads."""
        self.preparing = ThreadPoolExecutor(_PREPARING, "stublet-environment")
        """For environments, each of which may take minutes: the loop's own few threads are for what requests wait for."""
        self.log_settings = LogSettings(options.log, self._set_verbose)
        self._inference_metrics = InferenceMetrics(self._served, options.metrics.counter_latencies)
        self._machine_metrics = MachineMetrics(options.metrics)
        self.tracer = Tracer(options.trace)
        self.response_cache = ResponseCache(options.response_cache_byte_size) if options.response_cache_byte_size else None
        self.metrics = CustomMetrics(INFERENCE_NAMES | MACHINE_NAMES)
        self.device_memory = DeviceMemory(self)
        self.bls: Router
        self.watcher = Watcher(self)
        self._control = ModelControl(self)
        self._kept: Set[asyncio.Task[Any]] = set()
        self._segment_ids = itertools.count(1)
        self.request_memory = request_memory(options.shared_memory)
        self._may_shed_at = 0.0
        self.limits: Optional[RateLimits] = None
        self.lull = Lull()
        self._host_policies = HostPolicies()
        self.client_memory = ClientMemory(options.allow_client_shm, self.next_segment_id, self._forget_soon)

    async def start(self, meanwhile: Optional[Awaitable[None]] = None) -> None:
        """Loads all models at once. What did not load is in ``failures``.

        Args:
            meanwhile: what else has to be done before the server is ready.

        Raises:
            OptionError: options that cannot be together.
            RepositoryError: a repository cannot be read.
        """
        self.options.check()
        if self.options.rate_limit != "off":
            self.limits = RateLimits([ResourceLimit.parse(text) for text in self.options.rate_limit_resources])
        self._host_policies = HostPolicies(self.options.host_policies)
        self.bls = Router(self)
        self.spawner.attach(asyncio.get_running_loop())
        self._loop = asyncio.get_running_loop()
        if self.options.allow_metrics:
            self.keep(self._loop.create_task(self._machine_metrics.run()))
        self.keep(self._loop.create_task(give_back_idle(self, self.options.shared_memory.idle_secs)))
        # A driver takes its time; configurations, which are read in the loop, find what was found.
        await self._loop.run_in_executor(None, supported_gpus)
        await asyncio.gather(self._control.start(), *([meanwhile] if meanwhile else []))
        self.started = True

    def begin_end(self) -> None:
        """Is not ready any more, and loads nothing; what serves goes on to until ``stop``."""
        self.stopping = True
        self.ending.set()

    async def stop(self, seconds: float) -> None:
        """Ends every model, all at once, within ``seconds``."""
        self.begin_end()
        await self._control.stop(seconds)
        for task in self._kept:
            task.cancel()
        if self._kept:
            await asyncio.wait(self._kept)
        self.preparing.shutdown(wait=False)
        self.client_memory.close()
        self.spawner.close()
        self.workspace.close()
        await asyncio.get_running_loop().run_in_executor(None, self.tracer.close)

    async def load_model(self, name: str, config: str = "", files: Optional[Mapping[str, bytes]] = None) -> None:
        """Loads a model, or loads it again if anything of it has changed, and returns when it serves. See ``ModelControl.load``.

        Raises:
            ServerError: it was not loaded; one that served before still does.
        """
        await self._control.load(name, config, files)

    async def unload_model(self, name: str, unload_dependents: bool = False) -> None:
        """Takes a model away and returns when it has finished what it was asked and has ended. See ``ModelControl.unload``.

        Args:
            unload_dependents: with an ensemble, the models that were loaded for it alone.

        Raises:
            ServerError: it was not unloaded.
        """
        await asyncio.shield(await self._control.unload(name, unload_dependents))

    def repository_index(self, ready: bool = False) -> List[Dict[str, str]]:
        """A row for each version of each model (``name``, ``version``, ``state``, ``reason``), and one for each model that has none.

        Args:
            ready: only those that serve.

        Raises:
            Unavailable: a repository cannot be read.
        """
        return self._control.index().rows(ready)

    async def model_ready(self, name: str, version_text: str = "") -> bool:
        """Whether a version of a model, "" for any, serves, and its own ``is_ready`` says so.

        Raises:
            NotFound: there is no such model or version.
            InvalidArgument: the version is not a number above 0.
        """
        number = version_number(version_text)
        versions = self.models.get(name)
        if versions is None or (number is not None and number not in versions):
            if name in self.failures or self._control.is_loading(name):
                return False
            raise NotFound(f"Request for unknown model: '{name}' {f'version {number} ' if versions and number else ''}is not found")
        try:
            await self.find(name, number).check_ready()
        except ServerError:
            return False
        return True

    async def ask(self, what: str, arguments: Sequence[Any], asker: str = "") -> Any:
        """Does something for a model: ``model.load`` (name, config, files), ``model.unload`` (name, unload_dependents), which does not
        wait for the end of it, or ``model.ready`` (name, version).

        Args:
            arguments: as the model's stub sent them: of any number and types.
            asker: the model's name.

        Raises:
            ServerError: it is not done; the text says why.
        """
        if what == "model.load":
            name, config, files = _typed(what, arguments, str, str, (dict, type(None)))
            if files and not all(isinstance(path, str) and isinstance(content, bytes) for path, content in files.items()):
                raise InvalidArgument(f"failed to load model '{name}', files should be a dictionary of file paths and file contents")
            await self._control.load(name, config, files, asker)
            return None
        if what == "model.unload":
            name, unload_dependents = _typed(what, arguments, str, bool)
            await self._control.unload_soon(name, unload_dependents)
            return None
        if what == "model.ready":
            name, version_text = _typed(what, arguments, str, str)
            return await self.model_ready(name, version_text)
        raise InvalidArgument(f"the server has no answer to '{what}'")

    @property
    def alive(self) -> Collection[Servable]:
        """Every model that may have processes, also those that are being loaded or on their way out."""
        return self._control.alive

    # For instances

    def place(self, config: Any) -> List[Tuple[InstanceSpec, Placement]]:
        """The instances that a configuration asks for, and where they run.

        Raises:
            ConfigError: the rate limiter could never let one of them execute.
        """
        placed = place(config, self._host_policies)
        if self.limits is not None:
            try:
                self.limits.check([spec for spec, _ in placed])
            except ValueError as error:
                raise ConfigError(str(error)) from error
        return placed

    async def asked(self, instance: Instance, what: str, arguments: Sequence[Any]) -> Any:
        """Answers a question of an instance: ``ask``, or an operation on a metric. Nothing of it is trusted.

        Raises:
            ServerError, CustomMetricError: the answer is no; the text says why.
        """
        if isinstance(what, str) and what.startswith(_METRIC):
            return self.metrics.perform(instance, what, arguments)
        if what == EXPORT:
            return await self.device_memory.export(instance, arguments)
        return await self.ask(what, arguments, instance.model.name)

    def told(self, instance: Instance, what: str, arguments: Sequence[Any]) -> None:
        """Does what an instance tells: an operation on a metric, or that it cannot open device memory.

        Raises:
            CustomMetricError: it cannot be done.
            TypeError, ValueError: it told that wrongly.
        """
        if what == REFUSED:
            self.device_memory.refused(instance, arguments)
        else:
            self.metrics.perform(instance, what, arguments)

    def instance_gone(self, instance: Instance, segments: Sequence[int]) -> None:
        """Its process has ended, and with it what it held here, and the segments of its arena."""
        self.metrics.release(instance)
        if self.limits is not None:
            self.limits.dismiss(instance)
        self.device_memory.retired.gone(instance)
        self.forget(segments)

    def forget(self, segments: Sequence[int]) -> None:
        """These segments are no more: the stubs that know them may unmap them."""
        for model in self._control.alive:
            for instance in model.instances:
                instance.forget(segments)

    def _set_verbose(self, wanted: bool) -> None:
        for model in self._control.alive:
            for instance in model.instances:
                instance.set_verbose(wanted)

    def shed_requests(self) -> None:
        """Has every model drop the segments of its request arena in which nothing lies; but spends no more than a tenth of the time on it,
        since of many requests for which there is no room most should be refused fast. In any thread, under the lock of no model."""
        began = time.monotonic()
        if began < self._may_shed_at:
            return
        self._may_shed_at = began + 1
        for versions in list(self.models.values()):
            for model in list(versions.values()):
                shed = model.shed(at_once=True)
                if shed:
                    self._forget_soon(shed)
        ended = time.monotonic()
        self._may_shed_at = ended + 9 * (ended - began)

    def take_for_body(self, nbytes: int) -> None:
        """Counts memory for a body, or a part of one, that is gathered before it can be read. In any thread, under the lock of no model.

        Raises:
            OutOfSharedMemory: it would be too much.
        """
        try:
            self.request_memory.take(nbytes, "memory")
        except OutOfSharedMemory:
            self.shed_requests()
            self.request_memory.take(nbytes, "memory")

    def _forget_soon(self, segments: Sequence[int]) -> None:
        self._loop.call_soon_threadsafe(self.forget, segments)

    def collect_messages(self) -> None:
        """Reads what stubs have said before now."""
        for model in self._control.alive:
            for instance in model.instances:
                instance.process.collect()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Keeps a task until it is done; the end of the server cancels it."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def next_segment_id(self) -> int:
        """Ids of shared memory segments, unique in this server."""
        return next(self._segment_ids)

    def find(self, name: str, version: Optional[int] = None) -> Servable:
        """The model of that name: that version, or the newest one that serves.

        Raises:
            NotFound: in Triton's words.
        """
        versions = self.models.get(name)
        if versions is None:
            if name in self.failures or self._control.is_loading(name):
                raise NotFound(f"Request for unknown model: '{name}' has no available versions")
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if version is None:
            for number in sorted(versions, reverse=True):
                if versions[number].takes_requests:
                    return versions[number]
            loaded = [number for number in versions if not versions[number].reason]
            if not loaded:
                raise NotFound(f"Request for unknown model: '{name}' has no available versions")
            return versions[max(loaded)]
        model = versions.get(version)
        if model is None:
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        if model.reason:
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not at ready state")
        return model

    @property
    def ready(self) -> bool:
        """Whether every model serves, or, without strict readiness, whether the server does."""
        if not self.started or self.stopping:
            return False
        if not self.options.strict_readiness:
            return True
        return not self.failures and all(m.ready for versions in list(self.models.values()) for m in versions.values())

    async def check_ready(self) -> bool:
        """``ready``, and, with strict readiness, what the models' own ``is_ready`` say."""
        if not self.ready:
            return False
        if not self.options.strict_readiness:
            return True
        checks = [model.check_ready() for versions in list(self.models.values()) for model in versions.values()]
        return not any(await asyncio.gather(*checks, return_exceptions=True))

    def metrics_text(self) -> bytes:
        """What the metrics port shows, with all that stubs have said before now."""
        self.collect_messages()
        return exposition.render([self._inference_metrics, self._machine_metrics, self.metrics])

    def statistics(self, name: str = "", version: str = "") -> List[Dict[str, Any]]:
        """What the requests to each model that serves, or to one, or to a version of it, came to: ``model_stats`` of the protocol (spec 6.9).

        Raises:
            InvalidArgument: it is not there, or the version is not a number; in Triton's words.
        """
        found = [model for model in self._served() if name in ("", model.name)]
        if name and not found:
            raise InvalidArgument(f"requested model '{name}' is not available")
        if version:
            number = 0 if version == "0" else version_number(version)
            found = [model for model in found if model.version == number]
            if not found:
                raise InvalidArgument(f"requested model version is not available for model '{name}'")
        return [
            {
                "name": model.name,
                "version": str(model.version),
                **model.statistics.as_dict(),
                "memory_usage": [{"type": "CPU", "id": 0, "byte_size": model.memory().inputs + model.memory().outputs}],
            }
            for model in found
        ]

    def _served(self) -> List[Servable]:
        """Those that have loaded, by name and version."""
        return [model for _, versions in sorted(self.models.items()) for _, model in sorted(versions.items()) if not model.reason]

    def status(self) -> List[ModelStatus]:
        """A row for each instance and each ensemble, and one for each model, or version of it, that failed before it had any."""
        rows: List[ModelStatus] = []
        for name in sorted({*self.models, *self.failures}):
            versions = sorted(self.models.get(name, {}).items())
            ensembles = [m for _, m in versions if isinstance(m, Ensemble) and not m.reason]
            for ensemble in ensembles:
                state, reason = ("READY", "") if ensemble.ready else ("UNAVAILABLE", ensemble.unavailable_text())
                rows.append(ModelStatus(name, str(ensemble.version), "", "", "", state, reason))
            instances = [(m, i) for _, m in versions for i in m.instances if not i.in_reserve]
            if all(i.state is State.READY for _, i in instances) and (name in self.failures or not (instances or ensembles)):
                rows.append(ModelStatus(name, "", "", "", "", "UNAVAILABLE", self.failures.get(name, "")))
            for model, instance in instances:
                state = instance.state.value if instance.state is State.READY else "UNAVAILABLE"
                pid = str(instance.pid) if instance.state is State.READY else ""
                rows.append(ModelStatus(name, str(model.version), instance.name, pid, instance.spec.kind, state, instance.reason))
        return rows

    def trace_settings(self, model: str = "") -> TraceSettings:
        """The settings of traces.

        Args:
            model: whose settings are to be shown or changed; "" for those of all.

        Raises:
            InvalidArgument: there is none of that name.
        """
        if model and model not in self.models:
            raise InvalidArgument(f"Request for unknown model : {model}")
        return self.tracer.settings

    def extensions(self) -> List[str]:
        """The protocol extensions that this server has."""
        return [
            "classification",
            "model_repository",
            "model_repository(unload_dependents)",
            "model_configuration",
            "system_shared_memory",
            "binary_tensor_data",
            "parameters",
            "statistics",
            "trace",
            "logging",
        ]

    def model_metadata(self, name: str, number: Optional[int] = None) -> Dict[str, Any]:
        """The body of ``GET /v2/models/<name>``.

        Raises:
            NotFound: in Triton's words.
        """
        model = self.find(name, number)
        versions = [str(one) for one in sorted(self.models[name])]
        platform = model.config.platform or model.config.backend
        inputs, outputs = ([spec.metadata() for spec in specs] for specs in (model.inputs, model.outputs))
        return {"name": name, "versions": versions, "platform": platform, "inputs": inputs, "outputs": outputs}

    def metadata(self) -> Dict[str, Any]:
        """The body of ``GET /v2``."""
        return {"name": self.options.server_id, "version": version.TRITON_VERSION, "extensions": self.extensions()}


def version_number(text: str) -> Optional[int]:
    """The number of a version; None for "", which leaves the choice to the server.

    Raises:
        InvalidArgument: not a number above 0, in Triton's words.
    """
    if not text:
        return None
    number = _INTEGER.fullmatch(text)
    if number is None or int(text) <= 0:
        details = "" if number else " (details: stol)"
        raise InvalidArgument(
            f"failed to get model version from specified version string '{text}'{details}, version should be an integral value > 0"
        )
    return int(text)


def _typed(what: str, arguments: Sequence[Any], *types: Any) -> Sequence[Any]:
    """The arguments, if they are as many and of these types."""
    if len(arguments) != len(types) or not all(isinstance(argument, kind) for argument, kind in zip(arguments, types)):
        raise InvalidArgument(f"wrong arguments of '{what}'")
    return arguments
