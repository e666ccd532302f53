"""Models come and go: at the start, on request, and at the end (spec 5.6).

What serves is replaced only by what has loaded: a failed reload changes nothing. What was replaced or unloaded finishes what it was
asked, in the background. Loads of one model happen one after the other, those of different models at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Coroutine, Dict, Hashable, Iterator, List, Mapping, NamedTuple, Optional, Set
from weakref import WeakValueDictionary

from . import auto_complete, model_config, model_source, repository
from .errors import InvalidArgument, ServerError, Unavailable
from .instance import LoadFailed
from .lifecycle import State
from .model import Model
from .model_config import ConfigError
from .model_source import Source
from .options import ALL_MODELS

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
    model: Optional[Model]
    reason: str


class ModelControl:
    """``start`` loads what is to be there from the start; then ``load`` and ``unload``; ``stop`` ends every model."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sources: Dict[str, Source] = {}
        self._identities: Dict[str, Optional[Hashable]] = {}
        self._loading: Set[str] = set()
        self._waiting: Dict[str, List[str]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: Set[asyncio.Task[Any]] = set()
        self._retiring: Dict[asyncio.Task[None], List[Model]] = {}
        self.alive: Set[Model] = set()
        """Every model that may have processes: those that are loaded or being loaded, and those that are on their way out."""
        self._starts: Set[asyncio.Task[None]] = set()
        self._temporaries: Set[str] = set()
        self._ending = asyncio.Event()

    def is_loading(self, name: str) -> bool:
        """Whether the model is being loaded, perhaps beside one of the same name that serves."""
        return name in self._loading

    async def start(self) -> None:
        """Loads the models that are to be there from the start, all at once. What did not load is in the core's ``failures``.

        Raises:
            RepositoryError: a repository cannot be read.
        """
        options = self._core.options
        sources: List[Source] = []
        if not options.explicit or ALL_MODELS in options.load_models:
            sources += [Source(files) for files in repository.scan(options.model_repositories).values()]
        else:
            repository.check_roots(options.model_repositories)
            for name in dict.fromkeys(options.load_models):
                try:
                    sources.append(model_source.in_repository(options.model_repositories, model_source.check_name(name)))
                except ServerError as error:
                    self._failed(name, str(error).replace(f"failed to load '{name}', ", ""))
        results = await asyncio.gather(*(self._own(self._bring_up(source)) for source in sources), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ServerError):
                raise result

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
        with self._waits(asker, name):
            await self._own(self._load(name, config, files))

    async def unload(self, name: str) -> asyncio.Future[None]:
        """Takes a model away: new requests are told that it is not known. One that is not there is unloaded already.

        Returns:
            Done when it has finished what it was asked and has ended.

        Raises:
            InvalidArgument: the name cannot be.
            Unavailable: models cannot be unloaded on request, or not now.
        """
        self._check_allowed()
        model_source.check_name(name)
        ended: asyncio.Future[None] = await self._own(self._unload(name))
        return ended

    async def unload_soon(self, name: str) -> None:
        """``unload`` for those who cannot wait, because what has to finish or to be loaded first may wait for them.

        Raises:
            InvalidArgument: the name cannot be.
            Unavailable: models cannot be unloaded on request, or not now.
        """
        self._check_allowed()
        model_source.check_name(name)
        if self.is_loading(name):
            self._begin(self._unload(name))
        else:
            await self._own(self._unload(name))

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
            raise Unavailable(
                "explicit model load / unload is not allowed: the server runs with --model-control-mode="
                f"{self._core.options.model_control_mode}; start it with --model-control-mode=explicit"
            )
        self._check_running()

    def _check_running(self) -> None:
        if self._core.stopping:
            raise Unavailable("the server is ending")

    @contextmanager
    def _waits(self, asker: str, name: str) -> Iterator[None]:
        """While a model that is itself being loaded waits for another one.

        Raises:
            Unavailable: that one waits for it, so neither would ever be loaded.
        """
        if asker not in self._loading:
            yield
            return
        behind = {name}
        todo = [name]
        while todo:
            for other in self._waiting.get(todo.pop(), []):
                if other not in behind:
                    behind.add(other)
                    todo.append(other)
        if asker in behind:
            raise Unavailable(f"model '{asker}' is being loaded and cannot wait for '{name}', which waits for it")
        waiting = self._waiting.setdefault(asker, [])
        waiting.append(name)
        try:
            yield
        finally:
            waiting.remove(name)
            if not waiting:
                del self._waiting[asker]

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _own(self, doing: Coroutine[Any, Any, Any]) -> Any:
        """Begins something and waits for it; it goes on when whoever asked for it is gone."""
        task = self._begin(doing)
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
            source = await model_source.in_request(name, config, files)
            self._temporaries.add(source.temporary)
        else:
            source = model_source.in_repository(self._core.options.model_repositories, name, config)
        try:
            await self._bring_up(source)
        finally:
            if self._sources.get(name) is not source:
                self._remove(source)

    async def _bring_up(self, source: Source) -> None:
        """Loads a source in the place of what serves under its name.

        Raises:
            InvalidArgument: it does not load.
        """
        name = source.files.name
        async with self._lock(name):
            self._check_running()
            self._loading.add(name)
            try:
                await self._replace(name, source)
            finally:
                self._loading.discard(name)

    async def _replace(self, name: str, source: Source) -> None:
        options = self._core.options
        old = list(self._core.models.get(name, {}).values())
        serves = any(model.ready for model in old)
        try:
            config = source.config()
            versions = repository.settle(config, source.files, options.backend_directory)
        except ConfigError as error:
            self._failed(name, str(error), serves)
            raise InvalidArgument(f"failed to load '{name}', {error}") from error
        identity = await model_source.identity(source, config, options.backend_directory) if options.explicit else None
        unchanged = identity is not None and identity == self._identities.get(name)
        if unchanged and serves and name not in self._core.failures and all(map(_is_whole, old)):
            logger.info("'%s' is loaded and has not changed", name)
            return
        attempts = await asyncio.gather(*(self._load_version(source, version, config) for version in versions))
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
            if not failures:
                self._core.failures.pop(name, None)
            self._retire(old, replaced, _LATE_SECONDS if serves else 0)
        if failures:
            raise InvalidArgument(f"load failed for model '{name}': {'; '.join(failures)};")

    async def _load_version(self, source: Source, version: int, config: Any) -> _Attempt:
        files = source.files
        model = None
        try:
            if self._core.options.auto_complete_config:
                config = await auto_complete.run(self._core, files, version, config)
                model_config.complete(config, files.name)
            model_config.check(config, files.name)
            model = Model(self._core, files, version, config)
            self.alive.add(model)
            await self._start(model)
        except (ConfigError, LoadFailed) as error:
            if model is not None:
                model.reason = str(error)
            return _Attempt(version, model, str(error))
        except Exception:
            logger.exception("internal error while loading '%s' version %d", files.name, version)
            if model is not None:
                model.reason = _INTERNAL
                await model.stop(0)
            return _Attempt(version, model, _INTERNAL)
        logger.info("successfully loaded '%s' version %d", files.name, version)
        return _Attempt(version, model, "")

    async def _start(self, model: Model) -> None:
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
        logger.error("failed to load '%s': %s", name, reason)
        if not serves:
            self._core.failures[name] = reason

    # Unloading

    async def _unload(self, name: str) -> asyncio.Future[None]:
        async with self._lock(name):
            self._check_running()
            models = list(self._core.models.pop(name, {}).values())
            self._core.failures.pop(name, None)
            self._identities.pop(name, None)
            return self._retire(models, self._sources.pop(name, None), unloaded=name if models else "")

    def _retire(self, models: List[Model], source: Optional[Source] = None, late: float = 0, unloaded: str = "") -> asyncio.Future[None]:
        """Lets models that nobody finds any more finish and end, in the background, then removes their files."""
        task = asyncio.ensure_future(self._end(models, source, late, unloaded))
        self._retiring[task] = models
        task.add_done_callback(self._retiring.pop)
        return task

    async def _end(self, models: List[Model], source: Optional[Source], late: float, unloaded: str) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ending.wait(), late)
        await asyncio.gather(*(model.stop(DRAIN_SECONDS) for model in models))
        self.alive.difference_update(models)
        if source is not None:
            self._remove(source)
        if unloaded:
            logger.info("successfully unloaded '%s'", unloaded)

    def _remove(self, source: Source) -> None:
        self._temporaries.discard(source.temporary)
        model_source.remove(source.temporary)


def _is_whole(model: Model) -> bool:
    """Whether every instance serves."""
    return all(instance.state is State.READY for instance in model.instances)
