"""``GET /openapi.json``: the table of endpoints as an OpenAPI 3.1 description."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Dict, List, Sequence

import msgspec

from .. import version
from . import schemas
from .exchange import JSON, Exchange
from .routes import Operation, Route, paths

if TYPE_CHECKING:
    from ..core import Core

_JSON = "application/json"
_PARAMETER_SCHEMAS: Dict[str, schemas.Schema] = {"version": {"type": "integer", "minimum": 1}}


class OpenApi:
    """Its route describes itself and the others."""

    def __init__(self, core: Core, routes: Sequence[Route]) -> None:
        self.routes: List[Route] = [
            Route("GET", "/openapi.json", "metadata", self._show, Operation("This description", schemas.OBJECT)),
        ]
        self._text = msgspec.json.encode(describe(core.options.server_id, [*routes, *self.routes]))

    async def _show(self, exchange: Exchange) -> None:
        await exchange.answer(self._text, headers=[JSON])


def describe(title: str, routes: Sequence[Route]) -> Dict[str, Any]:
    """The description of all routes that have an operation."""
    described: Dict[str, Dict[str, Any]] = {}
    for route in routes:
        if route.operation is not None:
            for path in paths(route.path):
                described.setdefault(path, {})[route.method.lower()] = _operation(path, route, route.operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version.TRITON_VERSION, "summary": "KServe v2 inference protocol with Triton's extensions"},
        "paths": described,
    }


def _operation(path: str, route: Route, operation: Operation) -> Dict[str, Any]:
    failure = _content(_JSON, schemas.ERROR)
    if operation.answer_type != _JSON:
        # A stream that begins with an error has its status.
        failure.update(_content(operation.answer_type, schemas.EVENT))
    names = re.findall(r"\{(\w+)\}", path)
    described: Dict[str, Any] = {
        "summary": operation.summary,
        "tags": [route.api],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _PARAMETER_SCHEMAS.get(name, schemas.NAME)} for name in names
        ],
        "responses": {
            "200": {"description": "Done", **({"content": _content(operation.answer_type, operation.answer)} if operation.answer else {})},
            **{str(status): {"description": text} for status, text in operation.statuses.items()},
            "default": {"description": "Not done", "content": failure},
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": operation.body_required, "content": _content(_JSON, operation.body)}
    return described


def _content(kind: str, schema: schemas.Schema) -> Dict[str, Any]:
    return {kind: {"schema": schema}}
