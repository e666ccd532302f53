"""Health and metadata over HTTP (spec 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from ..errors import NotFound, ServerError
from . import schemas
from .exchange import JSON, Exchange
from .routes import MODEL, Operation, Route

if TYPE_CHECKING:
    from ..core import Core

_NOT_READY = {400: "It is not."}


class MetadataApi:
    """Its ``routes`` answer from ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.routes: List[Route] = [
            Route("GET", "/v2/health/live", "health", self._live, Operation("Whether the server answers", statuses=_NOT_READY)),
            Route("GET", "/v2/health/ready", "health", self._ready, Operation("Whether every model serves", statuses=_NOT_READY)),
            Route("GET", "/v2", "metadata", self._server, Operation("What the server is", schemas.SERVER)),
            Route("GET", MODEL + "/ready", "health", self._model_ready, Operation("Whether a model serves")),
            Route("GET", MODEL + "/config", "model-config", self._model_config, Operation("A model's configuration", schemas.OBJECT)),
            Route("GET", MODEL, "metadata", self._model, Operation("A model's inputs and outputs", schemas.MODEL)),
        ]

    async def _live(self, exchange: Exchange) -> None:
        # Without a body, as in Triton: with one, tritonclient's asynchronous client, which does not read it, would lose the connection.
        await exchange.answer()

    async def _ready(self, exchange: Exchange) -> None:
        await exchange.answer(status=200 if await self._core.check_ready() else 400)

    async def _server(self, exchange: Exchange) -> None:
        await exchange.answer_json(self._core.metadata())

    async def _model_ready(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        try:
            await self._core.find(name, version).check_ready()
        except NotFound:
            await exchange.answer_error(400, "Model version not ready")
        except ServerError as error:
            await exchange.answer_error(400, f"Model version not ready: {error}")
        else:
            await exchange.answer()

    async def _model(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        await exchange.answer_json(self._core.model_metadata(name, version))

    async def _model_config(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        await exchange.answer(self._core.find(name, version).config_json.encode(), headers=[JSON])
