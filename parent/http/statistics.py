"""Statistics of models over HTTP (spec 6.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from . import schemas
from .exchange import Exchange
from .routes import MODEL, Operation, Route

if TYPE_CHECKING:
    from ..core import Core


class StatisticsApi:
    """Its ``routes`` tell what the models of ``core`` have done."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.routes: List[Route] = [
            Route("GET", "/v2/models/stats", "statistics", self._all, Operation("Statistics of all models", schemas.STATISTICS)),
            Route("GET", MODEL + "/stats", "statistics", self._one, Operation("Statistics of a model", schemas.STATISTICS)),
        ]

    async def _all(self, exchange: Exchange) -> None:
        await exchange.answer_json({"model_stats": self._core.statistics()})

    async def _one(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        await exchange.answer_json({"model_stats": self._core.statistics(name, "" if version is None else str(version))})
