"""Shared memory of clients over HTTP: registering regions, and what is registered (spec 6.11)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ..errors import InvalidArgument
from . import schemas
from .exchange import Exchange
from .json_document import member, unsigned
from .routes import Operation, Route

if TYPE_CHECKING:
    from ..core import Core

_API = "shared-memory"
_BAD_HANDLE = "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"


class SharedMemoryApi:
    """Its ``routes`` register regions with ``core.client_memory``."""

    def __init__(self, core: Core) -> None:
        self._memory = core.client_memory
        self._limit = core.options.http_max_input_size
        system = Operation("Registers a region of system memory", body=schemas.SYSTEM_REGION, body_required=True)
        cuda = Operation("Registers a region of CUDA memory", body=schemas.CUDA_REGION, body_required=True)
        forget = Operation("Unregisters one region, or all")
        self.routes: List[Route] = [
            *_of_both("GET", "system", "status", self._system_status, Operation("The regions of system memory", schemas.SYSTEM_REGIONS)),
            *_of_both("GET", "cuda", "status", self._cuda_status, Operation("The regions of CUDA memory", schemas.CUDA_REGIONS)),
            *_of_both("POST", "system", "unregister", self._unregister_system, forget),
            *_of_both("POST", "cuda", "unregister", self._unregister_cuda, forget),
            Route("POST", "/v2/systemsharedmemory/region/{region}/register", _API, self._register_system, system),
            Route("POST", "/v2/cudasharedmemory/region/{region}/register", _API, self._register_cuda, cuda),
            Route("POST", "/v2/systemsharedmemory/register", _API, self._register_nameless_system, None),
            Route("POST", "/v2/cudasharedmemory/register", _API, self._register_nameless_cuda, None),
        ]

    async def _system_status(self, exchange: Exchange, region: Optional[str] = None) -> None:
        await exchange.answer_json(self._memory.system_status(region or ""))

    async def _cuda_status(self, exchange: Exchange, region: Optional[str] = None) -> None:
        await exchange.answer_json(self._memory.cuda_status(region or ""))

    async def _unregister_system(self, exchange: Exchange, region: Optional[str] = None) -> None:
        self._memory.unregister_system(region or "")
        await exchange.answer()

    async def _unregister_cuda(self, exchange: Exchange, region: Optional[str] = None) -> None:
        self._memory.unregister_cuda(region or "")
        await exchange.answer()

    async def _register_system(self, exchange: Exchange, region: str) -> None:
        document = await self._fields(exchange, "key", "byte_size")
        key = member(document, "key", str, "string")
        offset = unsigned(document, "offset") if "offset" in document else 0
        self._memory.register_system(region, key, offset, unsigned(document, "byte_size"))
        await exchange.answer()

    async def _register_cuda(self, exchange: Exchange, region: str) -> None:
        document = await self._fields(exchange, "raw_handle", "device_id", "byte_size")
        handle = _decode_handle(member(member(document, "raw_handle", dict, "object"), "b64", str, "string"))
        where = unsigned(document, "device_id"), unsigned(document, "byte_size")
        await self._memory.register_cuda_in_turn(region, handle, *where)
        await exchange.answer()

    async def _register_nameless_system(self, exchange: Exchange) -> None:
        raise InvalidArgument("'region name' is necessary to register system shared memory region")

    async def _register_nameless_cuda(self, exchange: Exchange) -> None:
        raise InvalidArgument("'region name' is necessary to register cuda shared memory region")

    async def _fields(self, exchange: Exchange, *required: str) -> Dict[str, Any]:
        document = await exchange.document(self._limit)
        for key in required:
            if not isinstance(document, dict) or key not in document:
                raise InvalidArgument(f"Shared memory register request has no '{key}' field")
        return document  # type: ignore[no-any-return]


def _of_both(method: str, kind: str, verb: str, handler: Any, operation: Operation) -> List[Route]:
    """An endpoint for one region, and for all."""
    start = f"/v2/{kind}sharedmemory"
    return [Route(method, f"{start}{region}/{verb}", _API, handler, operation) for region in ("", "/region/{region}")]


def _decode_handle(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(_BAD_HANDLE) from None
