"""Models come and go: at the start, on request, and at the end (spec 5.6).

What serves is replaced only by what has loaded: a failed reload changes nothing. What was replaced or unloaded finishes what it was
asked, in the background. Loads of one model happen one after the other, those of different models at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Awaitable, Coroutine, Dict, List, Mapping, NamedTuple, Optional, Set, Union
from weakref import WeakValueDictionary

from . import auto_complete, instance_change, model_config, model_source, repository
from .ensemble.config import is_ensemble, step_models
from .ensemble.parts import EnsembleParts
from .ensemble.servable import Ensemble
from .errors import InvalidArgument, ServerError, Unavailable
from .instance import LoadFailed
from .lifecycle import State
from .load_waits import LoadWaits
from .log import about, facts
from .model import Model
from .model_config import ConfigError
from .model_source import Identity, Source
from .options import ALL_MODELS
from .repository import RepositoryError
from .repository_index import Index
from .repository_poller import Poller
from .servable import Servable

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 600.0
"""How long a model that was unloaded or replaced may take to finish what it was asked."""

_LATE_SECONDS = 1.0
"""For how long a model that was replaced still takes requests: those that found it before, and are being received."""


_KILL_SECONDS = 5.0
_INTERNAL = "internal error: the server's log has the details"


class _Attempt(NamedTuple):
    """A version that was to be loaded; ``reason`` says why it was not, and is "" if it was."""

    version: int
    model: Optional[Servable]
    reason: str


class ModelControl:
    """``start`` loads what is to be there from the start; then ``load`` and ``unload``; ``stop`` ends every model."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sources: Dict[str, Source] = {}
        self._identities: Dict[str, Optional[Identity]] = {}
        self._loading: Dict[str, List[int]] = {}
        self._refused: Dict[str, Dict[int, str]] = {}
        self._leaving: Dict[str, List[int]] = {}
        self._unloaded: Dict[str, List[int]] = {}
        self._load_waits = LoadWaits()
        self._parts = EnsembleParts(core, self._in_repository)
        self._arrivals: Dict[str, asyncio.Task[None]] = {}
        self._poller = Poller(core.options.model_repositories, core.options.backend_directory, core.options.model_config_name, self)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: Set[asyncio.Task[Any]] = set()
        self._retiring: Dict[asyncio.Task[None], List[Servable]] = {}
        self.alive: Set[Servable] = set()
        """Every model that may have processes: those that are loaded or being loaded, and those that are on their way out."""
        self._starts: Set[asyncio.Task[None]] = set()
        self._temporaries: Set[str] = set()
        self._ending = asyncio.Event()

    def is_loading(self, name: str) -> bool:
        """Whether the model is being loaded, perhaps beside one of the same name that serves."""
        return name in self._loading

    def index(self) -> Index:
        """What is known of every model.

        Raises:
            Unavailable: a repository cannot be read.
        """
        core = self._core
        try:
            present = repository.names_in(core.options.model_repositories)
        except RepositoryError as error:
            raise Unavailable(str(error)) from error
        for name in set(self._unloaded).difference(present):
            del self._unloaded[name]
        return Index(present, core.models, core.failures, self._refused, self._loading, self._leaving, self._unloaded)

    async def start(self) -> None:
        """Loads the models that are to be there from the start, all at once. What did not load is in the core's ``failures``.

        Raises:
            RepositoryError: a repository cannot be read.
        """
        options = self._core.options
        if options.model_control_mode == "poll":
            await self._poller.look(settled=True)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._begin(self._poller.run(options.repository_poll_secs))
            return
        sources: List[Source] = []
        if not options.explicit or ALL_MODELS in options.load_models:
            found = repository.scan(options.model_repositories)
            sources += [Source(files, config_name=options.model_config_name) for files in found.models.values()]
            for name, reason in found.faults.items():
                self._failed(name, reason)
        else:
            repository.check_roots(options.model_repositories)
            for name in dict.fromkeys(options.load_models):
                try:
                    sources.append(self._in_repository(model_source.check_name(name)))
                except ServerError as error:
                    self._failed(name, str(error).replace(f"failed to load '{name}', ", ""))
        arrivals = [self._arriving(source) for source in sources]
        results = await asyncio.gather(*map(self._own, arrivals), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ServerError):
                raise result

    # For the poller, which follows the repositories

    def changed(self, source: Source) -> None:
        """Loads a model that is new or has changed."""
        self._begin(self._follow(self._arriving(source), source.files.name))

    def gone(self, name: str) -> None:
        """Unloads a model that is there no more."""
        self._begin(self._follow(self._unload(name), name))

    def failed(self, name: str, reason: str) -> None:
        """A model cannot be had; it goes on serving if it does."""
        self._failed(name, reason, any(model.ready for model in self._core.models.get(name, {}).values()))

    async def _follow(self, doing: Awaitable[Any], name: str) -> None:
        try:
            await doing
        except ServerError:
            return  # the log says why
        except Exception:
            logger.exception("internal error while following the changes of '%s'", name, extra=about(facts(name)))

    # On request

    async def load(self, name: str, config: str = "", files: Optional[Mapping[str, bytes]] = None, asker: str = "") -> None:
        """Loads a model, or loads it again if anything of it has changed. What serves goes on to until the new versions do.

        Args:
            config: JSON in the place of its ``config.pbtxt``.
            files: ``{"file:<version>/<path>": content}`` in the place of its directory; needs ``config``.
            asker: the model whose code asks for it, if one's does.

        Raises:
            InvalidArgument: it does not load; the text says why. Or the name or the files cannot be.
            NotFound: there is no such model.
            Unavailable: models cannot be loaded on request, or not now.
        """
        self._check_allowed()
        model_source.check_name(name)
        with self._load_waits.waits(asker, name) if asker in self._loading else nullcontext():
            self._parts.implied.discard(name)
            await self._own(self._load(name, config, files))

    async def unload(self, name: str, dependents: bool = False) -> asyncio.Future[None]:
        """Takes a model away: new requests are told that it is not known. One that is not there is unloaded already.

        Args:
            dependents: of an ensemble, also the models that were loaded because it consists of them, and that no other ensemble needs.

        Returns:
            Done when it has finished what it was asked and has ended.

        Raises:
            InvalidArgument: the name cannot be.
            Unavailable: models cannot be unloaded on request, or not now.
        """
        self._check_allowed()
        model_source.check_name(name)
        ended: asyncio.Future[None] = await self._own(self._unload(name, dependents))
        return ended

    async def unload_soon(self, name: str, dependents: bool = False) -> None:
        """``unload`` for those who cannot wait, because what has to finish or to be loaded first may wait for them.

        Raises:
            InvalidArgument: the name cannot be.
            Unavailable: models cannot be unloaded on request, or not now.
        """
        self._check_allowed()
        model_source.check_name(name)
        if self.is_loading(name):
            self._begin(self._unload(name, dependents))
        else:
            await self._own(self._unload(name, dependents))

    async def stop(self, seconds: float) -> None:
        """Ends every model, all at once, within ``seconds``."""
        self._ending.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        leaving = {model for models in self._retiring.values() for model in models}
        await asyncio.gather(self._hasten(seconds), *(model.stop(seconds) for model in self.alive - leaving))
        if self._starts:
            await asyncio.wait(self._starts, timeout=_KILL_SECONDS)
        for temporary in self._temporaries:
            model_source.remove(temporary)

    async def _hasten(self, seconds: float) -> None:
        """Waits for the models that are leaving, and then ends them."""
        if not self._retiring:
            return
        _, late = await asyncio.wait(set(self._retiring), timeout=seconds)
        if late:
            await asyncio.gather(*(model.stop(0) for task in late for model in self._retiring[task]))
            await asyncio.wait(late, timeout=_KILL_SECONDS)

    # One at a time

    def _check_allowed(self) -> None:
        if not self._core.options.explicit:
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")
        self._check_running()

    def _check_running(self) -> None:
        if self._core.stopping:
            raise Unavailable("the server is ending")

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _own(self, doing: Union[Coroutine[Any, Any, Any], asyncio.Task[Any]]) -> Any:
        """Begins something, unless that is done, and waits for it; it goes on when whoever asked for it is gone."""
        task = doing if isinstance(doing, asyncio.Task) else self._begin(doing)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._core.stopping:
                raise Unavailable("the server is ending") from None
            raise

    def _begin(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begins something that the end of the server cancels."""
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # for whoever asked, if anyone still waits

    # Loading

    async def _load(self, name: str, config: str, files: Optional[Mapping[str, bytes]]) -> None:
        if files:
            source = await model_source.in_request(name, config, files, self._core.workspace.path)
            self._temporaries.add(source.temporary)
        else:
            source = self._in_repository(name, config)
        try:
            await self._bring_up(source)
        finally:
            if self._sources.get(name) is not source:
                self._remove(source)

    def _arriving(self, source: Source) -> asyncio.Task[None]:
        """Begins to load a source; ensembles that consist of the model wait for it."""
        name = source.files.name
        task = self._arrivals[name] = self._begin(self._bring_up(source))
        task.add_done_callback(lambda _: self._arrivals.pop(name) if self._arrivals.get(name) is task else None)
        return task

    async def _bring_up_parts(self, names: List[str]) -> None:
        """Waits for the models of an ensemble that are being loaded, and loads those that are not there, where models are loaded on request.
        Of one that does not load the ensemble will say so."""
        for name in names:
            arrival = self._arrivals.get(name)
            if arrival is not None:
                await asyncio.wait([arrival])
            elif self.is_loading(name):
                async with self._lock(name):
                    continue
            elif self._core.options.explicit and not self._parts.is_there(name):
                self._parts.implied.add(name)
                with suppress(ServerError):
                    await self._bring_up(self._in_repository(name))

    async def _bring_up(self, source: Source) -> None:
        """Loads a source in the place of what serves under its name.

        Raises:
            InvalidArgument: it does not load.
        """
        name = source.files.name
        async with self._lock(name):
            self._check_running()
            self._loading[name] = []
            try:
                await self._replace(name, source)
            finally:
                del self._loading[name]

    async def _replace(self, name: str, source: Source) -> None:
        options = self._core.options
        old = list(self._core.models.get(name, {}).values())
        serves = any(model.ready for model in old)
        try:
            config = source.config()
            identity = await self._identify(source, config)
            versions = repository.settle(config, source.files, options.backend_directory)
            parts = self._parts.needed(name, config) if is_ensemble(config) else []
        except ConfigError as error:
            self._failed(name, str(error), serves)
            raise InvalidArgument(f"failed to load '{name}', {error}") from error
        before = self._identities.get(name)
        whole = serves and name not in self._core.failures and all(map(_is_whole, old))
        if whole and identity is not None and before is not None:
            if identity.whole == before.whole:
                logger.info("'%s' is loaded and has not changed", name, extra=about(facts(name)))
                return
            if identity.but_groups == before.but_groups and not parts:
                await self._change_groups(name, source, [model for model in old if isinstance(model, Model)], config, identity)
                return
        await self._bring_up_parts(parts)
        self._loading[name] = versions
        attempts = await asyncio.gather(*(self._try_version(source, version, config) for version in versions))
        failures = [f"version {version} is at UNAVAILABLE state: {reason}" for version, _, reason in attempts if reason]
        new = {version: model for version, model, _ in attempts if model is not None}
        if failures:
            self._failed(name, "; ".join(failures), serves)
        if failures and serves:
            self._retire(list(new.values()))
        else:
            replaced = self._sources.pop(name, None)
            if len(failures) < len(attempts):
                self._sources[name] = source
            self._core.models[name] = new
            self._identities[name] = identity
            self._refused[name] = {version: reason for version, _, reason in attempts if reason}
            self._unloaded.pop(name, None)
            if not failures:
                self._core.failures.pop(name, None)
                self._parts.settled(name)
                for ensemble in self._parts.waiting_for(name):
                    self._begin(self._follow(self._arriving(ensemble), ensemble.files.name))
            self._retire(old, replaced, _LATE_SECONDS if serves else 0)
        if failures:
            self._parts.failed(source, config)
            raise InvalidArgument(f"load failed for model '{name}': {'; '.join(failures)};")

    def _in_repository(self, name: str, config: str = "") -> Source:
        options = self._core.options
        return model_source.in_repository(options.model_repositories, name, config, options.model_config_name)

    async def _identify(self, source: Source, config: Any) -> Optional[Identity]:
        if self._core.options.model_control_mode == "none":
            return None  # nothing is ever loaded again
        run = asyncio.get_running_loop().run_in_executor
        return await run(None, model_source.identity, source, config, self._core.options.backend_directory)

    async def _change_groups(self, name: str, source: Source, models: List[Model], config: Any, identity: Identity) -> None:
        """Gives models that serve other instances. If one of those does not load, nothing is changed."""
        try:
            await instance_change.add_to_all(models, config)
        except (ConfigError, LoadFailed) as error:
            self._failed(name, str(error), serves=True)
            raise InvalidArgument(f"load failed for model '{name}': {error};") from error
        for model in models:
            self._begin(instance_change.remove_instances(model, instance_change.surplus(model), DRAIN_SECONDS))
        self._sources[name], self._identities[name] = source, identity
        logger.info("'%s' has other instances: %s", name, ", ".join(i.name for i in models[0].instances), extra=about(facts(name)))

    async def _try_version(self, source: Source, version: int, config: Any) -> _Attempt:
        """Loads a version; tries again, if it fails, as often as the options say."""
        attempt = await self._load_version(source, version, config)
        for left in range(self._core.options.model_load_retry_count, 0, -1):
            if not attempt.reason:
                break
            text = "'%s' version %d did not load (%s); trying again, at most %d times"
            logger.warning(text, source.files.name, version, attempt.reason, left, extra=about(facts(source.files.name, version)))
            if attempt.model is not None:
                self.alive.discard(attempt.model)
            attempt = await self._load_version(source, version, config)
        return attempt

    async def _load_version(self, source: Source, version: int, config: Any) -> _Attempt:
        files = source.files
        model: Optional[Servable] = None
        try:
            if self._core.options.auto_complete_config and not is_ensemble(config):
                config = await auto_complete.run(self._core, files, version, config)
                model_config.complete(config, files.name)
            model_config.check(config, files.name)
            model = (Ensemble if is_ensemble(config) else Model)(self._core, files, version, config)
            self.alive.add(model)
            await self._start(model)
        except (ConfigError, LoadFailed) as error:
            if model is not None:
                model.reason = str(error)
            return _Attempt(version, model, str(error))
        except Exception:
            logger.exception("internal error while loading '%s' version %d", files.name, version, extra=about(facts(files.name, version)))
            if model is not None:
                model.reason = _INTERNAL
                await model.stop(0)
            return _Attempt(version, model, _INTERNAL)
        logger.info("successfully loaded '%s' version %d", files.name, version, extra=about(facts(files.name, version)))
        return _Attempt(version, model, "")

    async def _start(self, model: Servable) -> None:
        """``model.load``, which is never cancelled: it is ``stop`` that ends the model at any point of its life."""
        task = asyncio.ensure_future(model.load())
        self._starts.add(task)
        task.add_done_callback(self._started)
        await asyncio.shield(task)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starts.discard(task)
        task.exception()  # for whoever loads it, if anyone still waits

    def _failed(self, name: str, reason: str, serves: bool = False) -> None:
        """A model that still serves as it was has not failed; its new form has."""
        logger.error("failed to load '%s': %s", name, reason, extra=about(facts(name)))
        if not serves:
            self._core.failures[name] = reason

    # Unloading

    async def _unload(self, name: str, dependents: bool = False) -> asyncio.Future[None]:
        async with self._lock(name):
            self._check_running()
            models = list(self._core.models.pop(name, {}).values())
            self._core.failures.pop(name, None)
            self._identities.pop(name, None)
            self._refused.pop(name, None)
            self._unloaded.pop(name, None)
            self._parts.settled(name)
            self._parts.implied.discard(name)
            ended = self._retire(models, self._sources.pop(name, None), unloaded=name if models else "")
        parts = [part for model in models[:1] for part in step_models(model.config)]
        return self._begin(self._unload_parts(ended, parts)) if dependents and parts else ended

    async def _unload_parts(self, ended: asyncio.Future[None], parts: List[str]) -> None:
        """Unloads the models of an ensemble that nobody else needs, when it has finished what it was asked."""
        await asyncio.shield(ended)
        await asyncio.gather(*[await self._unload(part, dependents=True) for part in self._parts.unneeded(parts)])

    def _retire(self, models: List[Servable], source: Optional[Source] = None, late: float = 0, unloaded: str = "") -> asyncio.Future[None]:
        """Lets models that nobody finds any more finish and end, in the background, then removes their files."""
        if unloaded:
            self._leaving[unloaded] = self._leaving.get(unloaded, []) + [model.version for model in models]
        task = asyncio.ensure_future(self._end(models, source, late, unloaded))
        self._retiring[task] = models
        task.add_done_callback(self._retiring.pop)
        return task

    async def _end(self, models: List[Servable], source: Optional[Source], late: float, unloaded: str) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ending.wait(), late)
        await asyncio.gather(*(model.stop(DRAIN_SECONDS) for model in models))
        self.alive.difference_update(models)
        if source is not None:
            self._remove(source)
        if unloaded:
            self._gone(unloaded, [model.version for model in models])
            logger.info("successfully unloaded '%s'", unloaded, extra=about(facts(unloaded)))

    def _gone(self, name: str, versions: List[int]) -> None:
        left = self._leaving.pop(name)
        for version in versions:
            left.remove(version)
        if left:
            self._leaving[name] = left
        elif name not in self._core.models and name not in self._loading:
            self._unloaded[name] = versions

    def _remove(self, source: Source) -> None:
        self._temporaries.discard(source.temporary)
        model_source.remove(source.temporary)


def _is_whole(model: Servable) -> bool:
    """Whether no instance has died."""
    return all(instance.state is not State.FAILED for instance in model.instances)
