"""How many threads numerical libraries use that are loaded already: by the fork server, for the stubs that are forked from it."""

from __future__ import annotations

from typing import Any, Optional


class ThreadCounts:
    """Of the libraries of this process. Those that a stub loads itself read the environment."""

    def __init__(self) -> None:
        self._libraries: Any = None
        self._original = self._current = 0
        try:
            from threadpoolctl import ThreadpoolController
        except ImportError:  # the server's own interpreter has it, unless somebody took it away
            return
        libraries = ThreadpoolController()
        counts = [library["num_threads"] for library in libraries.info()]
        if counts:
            self._libraries = libraries
            self._original = self._current = max(counts)

    def set(self, threads: Optional[int]) -> None:
        """Before a fork: the child has that many, or, with None, as many as the libraries chose.

        They end their threads when the process is forked, and start them when they are needed. To tell the child instead would start them at
        once, and keep cores busy for a while.
        """
        wanted = threads or self._original
        if self._libraries is not None and wanted != self._current:
            self._current = wanted
            self._libraries.limit(limits=wanted)
