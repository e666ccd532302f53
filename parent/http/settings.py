"""Settings that change while the server runs, over HTTP (spec 6.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from ..errors import InvalidArgument
from . import schemas
from .exchange import Exchange
from .routes import Operation, Route

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
        ]

    async def _log(self, exchange: Exchange) -> None:
        await exchange.answer_json(self._core.log_settings.as_dict())

    async def _change_log(self, exchange: Exchange) -> None:
        changes = await exchange.document(self._limit)
        if not isinstance(changes, dict):
            raise InvalidArgument("attempt to get members for non-object")
        self._core.log_settings.update(changes)
        await exchange.answer_json(self._core.log_settings.as_dict())
