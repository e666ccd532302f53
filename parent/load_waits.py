"""Which models that are being loaded wait for which others, so that none waits for itself."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Dict, Iterator, List

from .errors import Unavailable


class LoadWaits:
    """A model may ask, while it is loaded, for others to be loaded, and waits for them."""

    def __init__(self) -> None:
        self._waiting: Dict[str, List[str]] = {}

    @contextmanager
    def waits(self, asker: str, name: str) -> Iterator[None]:
        """While ``asker``, which is being loaded, waits for ``name``.

        Raises:
            Unavailable: that one waits for it, so neither would ever be loaded.
        """
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
