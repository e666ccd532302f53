"""The model repository over HTTP: what is in it, loading and unloading (spec 6.12)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from ..errors import InvalidArgument, Unsupported
from ..exposure import paths_hidden, rows_without_paths
from . import schemas
from .exchange import Exchange
from .json_document import boolean, parameters_of
from .routes import Operation, Route

if TYPE_CHECKING:
    from ..core import Core

_FILE = "file:"
_API = "model-repository"


class RepositoryApi:
    """Its ``routes`` look at the repositories of ``core`` and load and unload its models."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._limit = core.options.http_max_input_size
        self._expose = core.options.expose_tracebacks
        load = Operation("Loads a model, or loads it again", body=schemas.LOAD_REQUEST)
        unload = Operation("Unloads a model", body=schemas.UNLOAD_REQUEST)
        self.routes: List[Route] = [
            Route("POST", "/v2/repository/index", _API, self._index, Operation("All models", schemas.INDEX, body=schemas.INDEX_REQUEST)),
            Route("POST", "/v2/repository/models/{model}/load", _API, self._load, load),
            Route("POST", "/v2/repository/models/{model}/unload", _API, self._unload, unload),
            Route("POST", "/v2/repository/{repository}/index", _API, self._of_one, None),
            Route("POST", "/v2/repository/{repository}/models/{model}/load", _API, self._of_one, None),
            Route("POST", "/v2/repository/{repository}/models/{model}/unload", _API, self._of_one, None),
        ]

    async def _index(self, exchange: Exchange) -> None:
        document = await exchange.document(self._limit, {})
        ready = document.get("ready", False) if isinstance(document, dict) else False
        if not isinstance(ready, bool):
            raise InvalidArgument("Invalid value for 'ready': expected a boolean")
        await exchange.answer_json(rows_without_paths(self._core.repository_index(ready), self._expose))

    async def _load(self, exchange: Exchange, name: str) -> None:
        config, files = load_parameters(parameters_of(await exchange.document(self._limit, {})))
        with paths_hidden(self._expose):
            await self._core.load_model(name, config, files or None)
        await exchange.answer()

    async def _unload(self, exchange: Exchange, name: str) -> None:
        parameters = parameters_of(await exchange.document(self._limit, {}))
        dependents = boolean(parameters, "unload_dependents") if "unload_dependents" in parameters else False
        await self._core.unload_model(name, dependents)
        await exchange.answer()

    async def _of_one(self, exchange: Exchange, *_: str) -> None:
        raise Unsupported("'repository_name' specification is not supported")


def load_parameters(parameters: Dict[str, Any]) -> Tuple[str, Dict[str, bytes]]:
    """The configuration and the files that a load request brings, "" and none if it brings none.

    Raises:
        InvalidArgument: a parameter that there is not, or of a wrong type, or a file that is not in base64.
    """
    config, files = "", {}
    for key, value in parameters.items():
        if key != "config" and not key.startswith(_FILE):
            raise InvalidArgument(f"unrecognized load parameter '{key}'")
        if not isinstance(value, str):
            raise InvalidArgument(f"invalid value type for load parameter '{key}', expected string_param.")
        if key == "config":
            config = value
        else:
            files[key] = _file(key, value)
    return config, files


def _file(key: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"load parameter '{key}' is not valid base64: {error}") from None
