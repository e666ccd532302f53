"""The HTTP front end: KServe v2 as a bare ASGI application, for uvicorn or to be mounted in another server (spec 6.1 to 6.6).

There is no framework in between: each costs more per request than the rest of the path. The application reads the body as it comes
into shared memory (``http_infer``), and sends large outputs from there.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import unquote

from ..errors import ServerError, Unsupported
from ..header_forwarding import HeaderForwarding
from ..parameters import with_custom
from ..request import Outcome, drop
from ..restricted_apis import parse_restrictions
from . import compression, infer, response, schemas
from .exchange import BODY, JSON, Disconnected, Exchange, Headers, Receive, Scope, Send
from .generate import GenerateApi
from .instances import InstancesApi
from .metadata import MetadataApi
from .openapi import OpenApi
from .repository import RepositoryApi
from .routes import MODEL, Operation, Route, Router
from .settings import SettingsApi
from .shared_memory import SharedMemoryApi
from .statistics import StatisticsApi

if TYPE_CHECKING:
    from ..core import Core

logger = logging.getLogger(__name__)

InferTarget = Tuple[str, Optional[int]]

_BINARY = (b"content-type", b"application/octet-stream")
HEADER_LENGTH = b"inference-header-content-length"
_IN_EXECUTOR_BYTES = 256 << 10
_REMEMBERED_TARGETS = 1024

NO_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


class InferFields(NamedTuple):
    """The header fields that matter to an inference. Lengths are None where there is none."""

    header_length: Optional[int]
    content_length: Optional[int]
    content_encoding: bytes
    accept_encoding: bytes

    @classmethod
    def of(cls, headers: Headers) -> InferFields:
        """Reads them; names are in lower case, as ASGI has them."""
        header_length = content_length = None
        content_encoding = accept_encoding = b""
        for name, value in headers:
            if name == b"content-length":
                content_length = int(value)
            elif name == HEADER_LENGTH:
                header_length = _leading_int(value)
            elif name == b"content-encoding":
                content_encoding = value
            elif name == b"accept-encoding":
                accept_encoding = value
        if header_length is None and content_length == 0:
            header_length = 0
        return cls(header_length, content_length, content_encoding, accept_encoding)


class _Gate:
    """One request's outcome, awaited in the loop and settled in any thread."""

    __slots__ = ("_future", "_loop", "_thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        self._loop = loop
        self._thread = thread
        self._future: asyncio.Future[Outcome] = loop.create_future()

    def __await__(self) -> Any:
        return self._future.__await__()

    def settle(self, outcome: Optional[Outcome], _final: bool) -> None:
        """For a model that is not decoupled: called once, with an outcome."""
        assert outcome is not None
        if threading.get_ident() == self._thread:
            self._set(outcome)
        else:
            self._loop.call_soon_threadsafe(self._set, outcome)

    def leave(self) -> None:
        """The client is gone."""
        if not self._future.done():
            self._future.set_exception(Disconnected())

    def _set(self, outcome: Outcome) -> None:
        if not self._future.done():
            self._future.set_result(outcome)
        else:
            drop(outcome)


class HttpFrontEnd:
    """The ASGI application."""

    def __init__(self, core: Core) -> None:
        options = core.options
        self.core = core
        self.limit = options.http_max_input_size
        self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self._forwarding = HeaderForwarding(options.http_header_forward_pattern, "--http-header-forward-pattern")
        self._restrictions = parse_restrictions("--http-restricted-api", options.http_restricted_apis)
        operation = Operation("An inference", schemas.INFER_RESPONSE, body=schemas.INFER_REQUEST, body_required=True)
        routes: List[Route] = [
            Route("POST", MODEL + "/infer", "inference", self._infer, operation),
            *GenerateApi(core, self._forwarding).routes,
            *StatisticsApi(core).routes,
            *MetadataApi(core).routes,
            *RepositoryApi(core).routes,
            *SettingsApi(core).routes,
            *InstancesApi(core).routes,
            *SharedMemoryApi(core).routes,
        ]
        self.router = Router([*routes, *OpenApi(core, routes).routes])
        self.infer_targets: Dict[bytes, InferTarget] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(self.core, scope, receive, send)
        try:
            await self._serve(exchange)
        except ServerError as error:
            await exchange.answer_error(error.http_status, str(error))
        except Disconnected:
            return
        except asyncio.CancelledError:
            # The time for an orderly end is up; only a request that still waits for its body or its outcome can be told.
            if exchange.started:
                raise
            await exchange.answer_error(503, "the server is ending")
        except Exception:
            logger.exception("internal error while serving %s %s", scope["method"], scope["path"])
            if exchange.started:
                raise
            await exchange.answer_error(500, "internal error: the server's log has the details")
        finally:
            exchange.trace = None

    async def _serve(self, exchange: Exchange) -> None:
        scope = exchange.scope
        found = self.router.find(scope["path"])
        if found is None:
            await exchange.answer_error(404, "Not Found")
            return
        restriction = self._restrictions.get(next(iter(found.routes.values())).api)
        if restriction and not restriction.admits(exchange.header(restriction.header) or b""):
            await exchange.answer_error(403, f"This API is restricted, expecting header '{restriction.key}'")
            return
        route = found.routes.get(scope["method"])
        if route is None:
            await exchange.answer_error(405, "Method Not Allowed", [(b"allow", ", ".join(found.routes).encode())])
            return
        await route.handler(exchange, *found.arguments)

    def infer_target(self, url: bytes) -> Optional[InferTarget]:
        """The model's name and version if a request's target is that of an inference that has nothing special about it."""
        if self._forwarding or "inference" in self._restrictions:
            return None
        found = self.router.find(unquote(url.split(b"?", 1)[0].decode("latin-1")))
        route = found.routes.get("POST") if found else None
        if found is None or route is None or route.handler != self._infer:
            return None
        name, version = found.arguments
        if len(self.infer_targets) >= _REMEMBERED_TARGETS:
            self.infer_targets.clear()
        self.infer_targets[url] = name, version
        return name, version

    async def _infer(self, exchange: Exchange, name: str, version: Optional[int]) -> None:
        model = self.core.find(name, version)
        about = InferFields.of(exchange.scope["headers"])
        if model.decoupled:
            raise Unsupported(NO_DECOUPLED)
        exchange.begin_trace(self.core.tracer, name)
        forwarded = self._forwarding.parameters(exchange.headers_as_sent())
        decoder = compression.decoder_for(about.content_encoding) if about.content_encoding else None
        # The length of a compressed body says nothing about what it holds.
        length = None if decoder else about.content_length
        body = exchange.scope[BODY] = infer.InferBody(model, about.header_length, length, self.limit)
        try:
            await _read_body(exchange, body, decoder)
            header, block = body.finish()
        except BaseException:
            body.abandon()
            raise
        gate = _Gate(self._loop, self.thread)
        request = infer.make_request(model, header, block, gate.settle)
        if forwarded:
            request.extras = with_custom(request.extras, forwarded)
        request.trace = exchange.received()
        model.submit(request)
        try:
            with exchange.watched(gate.leave):
                outcome = await gate
        except BaseException:
            model.cancel(request)
            raise
        if isinstance(outcome, ServerError):
            raise outcome
        if response.takes_long(header, outcome):
            encoded = await self._loop.run_in_executor(None, response.encode, model, header, outcome)
        else:
            encoded = response.encode(model, header, outcome)
        del outcome
        coding = compression.accepted(about.accept_encoding) if about.accept_encoding else None
        with exchange.sending():
            if coding:
                await self._send_compressed(exchange, coding, encoded)
            else:
                await _send_pieces(exchange, encoded.pieces, encoded.nbytes, encoded.json_bytes)

    async def _send_compressed(self, exchange: Exchange, coding: str, encoded: response.Encoded) -> None:
        if encoded.nbytes > _IN_EXECUTOR_BYTES:
            data = await self._loop.run_in_executor(None, compression.compress, coding, encoded.pieces)
        else:
            data = compression.compress(coding, encoded.pieces)
        await _send_pieces(exchange, [data], len(data), encoded.json_bytes, [(b"content-encoding", coding.encode())])


async def _read_body(exchange: Exchange, body: infer.InferBody, decoder: Optional[compression.Decoder]) -> None:
    more = True
    while more:
        chunk, more = await exchange.chunk()
        if decoder is None:
            body.feed(chunk)
        else:
            for piece in decoder.feed(chunk):
                body.feed(piece)
    if decoder is not None:
        body.feed(decoder.finish())


async def _send_pieces(
    exchange: Exchange, pieces: List[Any], nbytes: int, json_bytes: Optional[int], headers: Sequence[Tuple[bytes, bytes]] = ()
) -> None:
    """Sends a response piece by piece; each is dropped when the socket has it."""
    kind: Headers = [JSON] if json_bytes is None else [_BINARY, (HEADER_LENGTH, b"%d" % json_bytes)]
    await exchange.start(200, [*kind, *headers, (b"content-length", b"%d" % nbytes)])
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        await exchange.piece(piece, more=bool(pieces))
        del piece


def _leading_int(value: bytes) -> int:
    """The number that a header begins with, 0 if it begins with none, as C's atoi has it (spec 6.4, recorded answers)."""
    if value.isdigit() and len(value) < 19:
        return int(value)
    match = re.match(rb"\s*([+-]?\d{1,18})", value)
    return int(match.group(1)) if match else 0
