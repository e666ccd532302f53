"""Settings that change while the server runs, over HTTP (spec 6.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from ..errors import InvalidArgument
from . import schemas
from .exchange import Exchange
from .routes import MODEL, Operation, Route

if TYPE_CHECKING:
    from ..core import Core


class SettingsApi:
    """Its ``routes`` show and change the settings of ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._limit = core.options.http_max_input_size
        change = Operation("Changes settings of the log", schemas.LOG_SETTINGS, body=schemas.LOG_CHANGES, body_required=True)
        self.routes: List[Route] = [
            Route("GET", "/v2/logging", "logging", self._log, Operation("The settings of the log", schemas.LOG_SETTINGS)),
            Route("POST", "/v2/logging", "logging", self._change_log, change),
            *self._trace_routes("/v2/trace/setting", "The settings of traces"),
            *self._trace_routes(MODEL + "/trace/setting", "The settings of a model's traces"),
        ]

    def _trace_routes(self, path: str, what: str) -> List[Route]:
        change = Operation(what + ", changed", schemas.TRACE_SETTINGS, body=schemas.TRACE_CHANGES, body_required=True)
        return [
            Route("GET", path, "trace", self._trace, Operation(what, schemas.TRACE_SETTINGS)),
            Route("POST", path, "trace", self._change_trace, change),
        ]

    async def _trace(self, exchange: Exchange, model: str = "", _version: Optional[int] = None) -> None:
        await exchange.answer_json(self._core.trace_settings(model).as_dict(model))

    async def _change_trace(self, exchange: Exchange, model: str = "", _version: Optional[int] = None) -> None:
        settings = self._core.trace_settings(model)
        changes = await exchange.document(self._limit)
        if not isinstance(changes, dict):
            raise InvalidArgument("attempt to get members for non-object")
        settings.update(changes, model)
        await exchange.answer_json(settings.as_dict(model))

    async def _log(self, exchange: Exchange) -> None:
        await exchange.answer_json(self._core.log_settings.as_dict())

    async def _change_log(self, exchange: Exchange) -> None:
        changes = await exchange.document(self._limit)
        if not isinstance(changes, dict):
            raise InvalidArgument("attempt to get members for non-object")
        self._core.log_settings.update(changes)
        await exchange.answer_json(self._core.log_settings.as_dict())
