"""The table of HTTP endpoints: what a request's path and method lead to, and what the description of the server says of it."""

from __future__ import annotations

import re
from typing import Any, Awaitable, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

Handler = Callable[..., Awaitable[None]]
"""Called with the exchange and the values of the path's parameters."""

MODEL = "/v2/models/{model}[/versions/{version}]"

_REMEMBERED_PATHS = 1024
_BRACKETS = {"[": "(?:", "]": ")?"}
_PARAMETERS: Mapping[str, str] = {"version": r"[0-9]{1,18}"}


class Operation(NamedTuple):
    """What the description of the server says of an endpoint. ``body`` and ``answer`` are JSON schemas.

    ``body``: None if a body means nothing. ``body_required``: an empty one is an error. ``answer``: of status 200, None for an empty one.
    ``answer_type``: its media type. ``statuses``: others without a body.
    """

    summary: str
    answer: Optional[Dict[str, Any]] = None
    answer_type: str = "application/json"
    body: Optional[Dict[str, Any]] = None
    body_required: bool = False
    statuses: Mapping[int, str] = {}


class Route(NamedTuple):
    """An endpoint. ``path`` may have parameters in braces and one part in brackets that may be left out; ``api`` is the group that
    ``--http-restricted-api`` names."""

    method: str
    path: str
    api: str
    handler: Handler
    operation: Optional[Operation]


class Found(NamedTuple):
    """What a path leads to: the routes by method, and the values of its parameters, None for one that was left out."""

    routes: Dict[str, Route]
    arguments: Tuple[Any, ...]


class Router:
    """Finds routes by path; the first whose pattern matches wins, together with all that have the very same path."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        by_path: Dict[str, Dict[str, Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = route
        self._patterns: List[Tuple[re.Pattern[str], Dict[str, Route]]] = [(_pattern(path), found) for path, found in by_path.items()]
        self._found: Dict[str, Found] = {}

    def find(self, path: str) -> Optional[Found]:
        """What a path leads to; None if nowhere."""
        found = self._found.get(path)
        if found is not None:
            return found
        for pattern, routes in self._patterns:
            match = pattern.fullmatch(path)
            if match:
                groups = match.groupdict().items()
                arguments = tuple(int(value) if name == "version" and value is not None else value for name, value in groups)
                if len(self._found) >= _REMEMBERED_PATHS:
                    self._found.clear()
                self._found[path] = found = Found(routes, arguments)
                return found
        return None


def paths(path: str) -> List[str]:
    """A route's path without and, if it has one, with the part that may be left out."""
    start, bracket, rest = path.partition("[")
    if not bracket:
        return [path]
    optional, _, end = rest.partition("]")
    return [start + end, start + optional + end]


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("".join(map(_expression, re.split(r"(\{\w+\}|\[|\])", path))))


def _expression(part: str) -> str:
    if part in _BRACKETS:
        return _BRACKETS[part]
    if part.startswith("{"):
        name = part[1:-1]
        return f"(?P<{name}>{_PARAMETERS.get(name, '[^/]+')})"
    return re.escape(part)
