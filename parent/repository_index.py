"""The repository index: the models that there are, and how each of their versions is (spec 5.6)."""

from __future__ import annotations

from typing import Collection, Dict, Iterator, List, Mapping, NamedTuple, Protocol, Tuple

READY, UNAVAILABLE, LOADING, UNLOADING = "READY", "UNAVAILABLE", "LOADING", "UNLOADING"
_UNLOADED = "unloaded"


class Loaded(Protocol):
    """A version that was loaded."""

    @property
    def ready(self) -> bool: ...

    def unavailable_text(self) -> str: ...


class Index(NamedTuple):
    """What is known, by name.

    ``present``: what is in the repositories. ``loaded``: what can be found, with versions whose instances did not load. ``failures``:
    why a model, or a version of it, did not load; ``refused``: the same by version. ``loading``: what is being loaded, perhaps in the
    place of what serves. ``leaving``: what was unloaded and still finishes; ``unloaded``: what has."""

    present: Collection[str]
    loaded: Mapping[str, Mapping[int, Loaded]]
    failures: Mapping[str, str]
    refused: Mapping[str, Mapping[int, str]]
    loading: Mapping[str, Collection[int]]
    leaving: Mapping[str, Collection[int]]
    unloaded: Mapping[str, Collection[int]]

    def rows(self, ready: bool = False) -> List[Dict[str, str]]:
        """A row for each version, by name and number, and one for each model that has none; ``ready``: only of those that serve."""
        names = {*self.present, *self.loaded, *self.failures, *self.loading, *self.leaving, *self.unloaded}
        rows = [row for name in sorted(names) for row in self._of(name)]
        return [row for row in rows if row.get("state") == READY] if ready else rows

    def _of(self, name: str) -> Iterator[Dict[str, str]]:
        states: Dict[int, Tuple[str, str]] = dict.fromkeys(self.unloaded.get(name, ()), (UNAVAILABLE, _UNLOADED))
        states.update((version, (UNLOADING, "")) for version in self.leaving.get(name, ()))
        states.update((version, (UNAVAILABLE, reason)) for version, reason in self.refused.get(name, {}).items())
        serving = set()
        for version, model in self.loaded.get(name, {}).items():
            if model.ready:
                serving.add(version)
                states[version] = READY, ""
            elif version not in self.refused.get(name, {}):
                states[version] = UNAVAILABLE, model.unavailable_text()
        states.update((version, (LOADING, "")) for version in self.loading.get(name, ()) if version not in serving)
        for version, (state, reason) in sorted(states.items()):
            row = {"name": name, "version": str(version), "state": state}
            yield {**row, "reason": reason} if reason else row
        if not states:
            reason = self.failures.get(name, "")
            yield {"name": name, "state": UNAVAILABLE, "reason": reason} if reason else {"name": name}
