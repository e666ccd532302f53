"""Which models ensembles consist of, while models come and go: what has to be there before an ensemble can load, what was loaded only for
one, and what an ensemble that did not load still waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Set

from ..errors import ServerError
from ..model_config import ConfigError
from ..model_source import Source
from .composing import circle
from .config import is_ensemble, step_models
from .servable import Ensemble

if TYPE_CHECKING:
    from ..core import Core


class EnsembleParts:
    """Args:
    find: a model's source in the repositories; raises ServerError if there is none.
    """

    def __init__(self, core: Core, find: Callable[[str], Source]) -> None:
        self._core = core
        self._find = find
        self.implied: Set[str] = set()
        """Models that were loaded because an ensemble consists of them, and that nobody has asked for."""
        self._waiting: Dict[str, Source] = {}

    def needed(self, name: str, config: Any) -> List[str]:
        """The models of an ensemble that is to be loaded, each once.

        Raises:
            ConfigError: it is part of itself.
        """
        parts: Dict[str, List[str]] = {name: step_models(config)}
        todo = list(parts[name])
        while todo:
            one = todo.pop()
            if one not in parts:
                parts[one] = self._of(one)
                todo += parts[one]
        last = circle(name, parts)
        if last:
            raise ConfigError(f"circular dependency between ensembles: {name} -> ... -> {last} -> {name}")
        return parts[name]

    def _of(self, name: str) -> List[str]:
        """The models of an ensemble that is loaded or can be; none for any other model."""
        config = next((model.config for model in self._core.models.get(name, {}).values()), None)
        if config is None:
            try:
                config = self._find(name).config()
            except (ServerError, ConfigError):
                return []
        return step_models(config) if is_ensemble(config) else []

    def is_there(self, name: str) -> bool:
        """Whether a model serves."""
        return any(model.ready for model in self._core.models.get(name, {}).values())

    def unneeded(self, names: List[str]) -> List[str]:
        """Those of an ensemble's models, now that it is unloaded, that were loaded for it alone."""
        loaded = [model for versions in self._core.models.values() for model in versions.values() if isinstance(model, Ensemble)]
        used = {part for ensemble in loaded for part in step_models(ensemble.config)}
        return [name for name in names if name in self.implied and name not in used]

    def failed(self, source: Source, config: Any) -> None:
        """An ensemble did not load."""
        if is_ensemble(config):
            self._waiting[source.files.name] = source

    def settled(self, name: str) -> None:
        """It was loaded, or nobody wants it any more."""
        self._waiting.pop(name, None)

    def waiting_for(self, name: str) -> List[Source]:
        """Ensembles that did not load and consist of a model, which now serves."""
        return [source for source in self._waiting.values() if name in self._parts_of(source)]

    def _parts_of(self, source: Source) -> List[str]:
        try:
            return step_models(source.config())
        except ConfigError:
            return []
