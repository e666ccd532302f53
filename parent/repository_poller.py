"""``--model-control-mode=poll``: what is in the repositories is what is served (spec 5.6).

Each look compares the repositories with what is served. A model that is new or has changed is loaded, one that is gone is unloaded. What is
still being written, as by ``cp`` or an editor, is not loaded by halves: a change counts when the next look, which then comes soon, sees the
same. What did not load is tried again when it has changed, not at each look.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Dict, Hashable, List, Mapping, NamedTuple, Protocol, Sequence, Tuple

from . import model_config, model_source, repository
from .model_config import ConfigError
from .model_source import Source
from .repository import RepositoryError, Scan

logger = logging.getLogger(__name__)

Identities = Mapping[str, Hashable]

SETTLING_SECONDS = 1.0
"""At most, from a look that has seen a change to the one that confirms it."""


class Owner(Protocol):
    """Who loads and unloads. Neither waits."""

    def changed(self, source: Source) -> None:
        """A model is new, or has changed."""

    def gone(self, name: str) -> None:
        """A model is there no more."""

    def failed(self, name: str, reason: str) -> None:
        """A model cannot be had, for instance because two repositories have it. If it serves, it may go on to."""


class Changes(NamedTuple):
    """What is different between two looks, by name."""

    changed: List[str]
    gone: List[str]
    failed: List[str]


def compare(before: Identities, now: Identities, faults_before: Mapping[str, str], faults: Mapping[str, str]) -> Changes:
    """What is to be done. A model that cannot be had is not gone."""
    return Changes(
        [name for name, identity in now.items() if before.get(name) != identity],
        [name for name in {**before, **faults_before} if name not in now and name not in faults],
        [name for name, reason in faults.items() if faults_before.get(name) != reason],
    )


def unconfirmed(changed: Sequence[str], now: Identities, unsettled: Identities) -> Dict[str, Hashable]:
    """Of the models that have changed, those that the look before did not see as they are now. ``unsettled`` is what it found unconfirmed."""
    return {name: now[name] for name in changed if name not in unsettled or unsettled[name] != now[name]}


class Poller:
    """``look`` once, or ``run`` for ever."""

    def __init__(self, roots: Sequence[str], backend_directory: str, config_name: str, owner: Owner) -> None:
        self._roots = roots
        self._backend_directory = backend_directory
        self._config_name = config_name
        self._owner = owner
        self._identities: Dict[str, Hashable] = {}
        self._faults: Dict[str, str] = {}
        self._unsettled: Dict[str, Hashable] = {}
        self._complaint = ""

    async def run(self, seconds: float) -> None:
        """Looks every so many seconds. Repositories that cannot be read, as when a file system is away, change nothing."""
        while True:
            await asyncio.sleep(min(seconds, SETTLING_SECONDS) if self._unsettled else seconds)
            try:
                await self.look()
                complaint = ""
            except RepositoryError as error:
                complaint = str(error)
            if complaint and complaint != self._complaint:
                logger.error("the model repositories cannot be polled: %s", complaint)
            self._complaint = complaint

    async def look(self, settled: bool = False) -> None:
        """Compares, and tells the owner.

        Args:
            settled: nobody is writing; each change counts at once.

        Raises:
            RepositoryError: a repository cannot be read.
        """
        found, identities = await asyncio.get_running_loop().run_in_executor(None, self._read)
        changes = compare(self._identities, identities, self._faults, found.faults)
        # A model that cannot be had now, and is the same when it can again, has not changed.
        kept = {name: self._identities[name] for name in found.faults if name in self._identities and name not in self._faults}
        unsettled = {} if settled else unconfirmed(changes.changed, identities, self._unsettled)
        for name in unsettled.keys() - self._unsettled.keys():
            logger.info("model '%s' has changed, or is being written; it is loaded when two looks in a row find it the same", name)
        before = {name: self._identities[name] for name in unsettled if name in self._identities}
        loadable = {name: identity for name, identity in identities.items() if name not in unsettled}
        self._identities, self._faults, self._unsettled = {**kept, **before, **loadable}, found.faults, unsettled
        for name in changes.gone:
            self._owner.gone(name)
        for name in changes.failed:
            self._owner.failed(name, found.faults[name])
        for name in changes.changed:
            if name not in unsettled:
                self._owner.changed(Source(found.models[name], config_name=self._config_name))

    def _read(self) -> Tuple[Scan, Dict[str, Hashable]]:
        found = repository.scan(self._roots)
        return found, {name: self._identity(Source(files, config_name=self._config_name)) for name, files in found.models.items()}

    def _identity(self, source: Source) -> Hashable:
        try:
            config = source.config()
        except ConfigError:
            config = model_config.messages.ModelConfig()
        return model_source.identity(source, config, self._backend_directory)
