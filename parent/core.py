"""The server without any front end: models loaded from repositories, found by name, stopped in order. Lives in one event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, Dict, List, NamedTuple, Optional

from . import model_config, repository, version
from .errors import NotFound
from .instance import LoadFailed
from .lifecycle import State
from .model import Model
from .model_config import ConfigError
from .options import ServerOptions
from .spawner import Spawner

logger = logging.getLogger(__name__)


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
    """``start`` loads every model of the repositories, ``stop`` ends them."""

    def __init__(self, options: ServerOptions, spawner: Spawner) -> None:
        self.options = options
        self.spawner = spawner
        self.models: Dict[str, Dict[int, Model]] = {}
        self.failures: Dict[str, str] = {}
        self.started = False
        self.stopping = False
        self._segment_ids = itertools.count(1)

    async def start(self) -> None:
        """Loads all models at once. What did not load is in ``failures``.

        Raises:
            RepositoryError: a repository cannot be read.
        """
        loop = asyncio.get_running_loop()
        self.spawner.attach(loop)
        found = repository.scan(self.options.model_repositories)
        await asyncio.gather(*(self._load(files) for files in found.values()))
        self.started = True

    async def _load(self, files: repository.ModelFiles) -> None:
        try:
            config = repository.load_config(files)
            versions = model_config.chosen_versions(config, files.versions)
            models = [Model(self, files, version, config) for version in versions]
        except ConfigError as error:
            self._failed(files.name, str(error))
            return
        self.models[files.name] = {model.version: model for model in models}
        for model, result in zip(models, await asyncio.gather(*(m.load() for m in models), return_exceptions=True)):
            if isinstance(result, LoadFailed):
                model.reason = str(result)
                self._failed(files.name, f"version {model.version} is at UNAVAILABLE state: {result}")
            elif isinstance(result, BaseException):
                raise result
            else:
                logger.info("successfully loaded '%s' version %d", model.name, model.version)

    def _failed(self, name: str, reason: str) -> None:
        self.failures[name] = reason
        logger.error("failed to load '%s': %s", name, reason)

    async def stop(self, seconds: float) -> None:
        """Ends every model, all at once, within ``seconds``."""
        self.stopping = True
        await asyncio.gather(*(model.stop(seconds) for versions in self.models.values() for model in versions.values()))
        self.spawner.close()

    def next_segment_id(self) -> int:
        """Ids of shared memory segments, unique in this server."""
        return next(self._segment_ids)

    def find(self, name: str, version: Optional[int] = None) -> Model:
        """The model of that name: that version, or the newest one that serves.

        Raises:
            NotFound: in Triton's words.
        """
        versions = self.models.get(name)
        if versions is None:
            if name in self.failures:
                raise NotFound(f"Request for unknown model: '{name}' has no available versions")
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if version is None:
            for number in sorted(versions, reverse=True):
                if versions[number].ready:
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
        return not self.failures and all(m.ready for versions in self.models.values() for m in versions.values())

    def status(self) -> List[ModelStatus]:
        """A row for each instance, and one for each model without any."""
        rows: List[ModelStatus] = []
        for name in sorted({*self.models, *self.failures}):
            instances = [(m, i) for _, m in sorted(self.models.get(name, {}).items()) for i in m.instances]
            if not instances:
                rows.append(ModelStatus(name, "", "", "", "", "UNAVAILABLE", self.failures.get(name, "")))
            for model, instance in instances:
                state = instance.state.value if instance.state is State.READY else "UNAVAILABLE"
                pid = str(instance.pid) if instance.state is State.READY else ""
                rows.append(ModelStatus(name, str(model.version), instance.name, pid, instance.spec.kind, state, instance.reason))
        return rows

    def extensions(self) -> List[str]:
        """The protocol extensions that this server has."""
        return ["model_configuration", "binary_tensor_data", "parameters"]

    def metadata(self) -> Dict[str, Any]:
        """The body of ``GET /v2``."""
        return {"name": self.options.server_id, "version": version.TRITON_VERSION, "extensions": self.extensions()}
