"""The HTTP front end: KServe v2 as a bare ASGI application, for uvicorn or to be mounted in another server (spec 6.1 to 6.6).

There is no framework in between: each costs more per request than the rest of the path. The application reads the body as it comes
into shared memory (``http_infer``), and sends large outputs from there.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import unquote

import msgspec

from . import compression, http_infer
from .errors import NotFound, ServerError, Unsupported
from .request import Outcome, Request, Response

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)

Scope = Dict[str, Any]
Receive = Callable[[], Awaitable[Dict[str, Any]]]
Send = Callable[[Dict[str, Any]], Awaitable[None]]
Headers = List[Tuple[bytes, bytes]]
InferTarget = Tuple[str, Optional[int]]

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
HEADER_LENGTH = b"inference-header-content-length"
_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]{1,18}))?"
_IN_EXECUTOR_BYTES = 256 << 10
_REMEMBERED_PATHS = 1024


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


class Disconnected(Exception):
    """The client went away before its request was complete."""


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

    def _set(self, outcome: Outcome) -> None:
        if not self._future.done():
            self._future.set_result(outcome)
        elif isinstance(outcome, Response):
            outcome.release()


class HttpFrontEnd:
    """The ASGI application."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.limit = core.options.http_max_input_size
        self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self._routes: Sequence[Tuple[re.Pattern[str], str, Callable[..., Awaitable[None]]]] = [
            (re.compile(pattern), method, handler)
            for pattern, method, handler in (
                (_MODEL + "/infer", "POST", self._infer),
                (_MODEL + "/ready", "GET", self._model_ready),
                (_MODEL + "/config", "GET", self._model_config),
                (_MODEL, "GET", self._model_metadata),
                ("/v2", "GET", self._metadata),
                ("/v2/health/live", "GET", self._live),
                ("/v2/health/ready", "GET", self._ready),
            )
        ]
        self._found: Dict[str, Any] = {}
        self.infer_targets: Dict[bytes, InferTarget] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        route = self._found.get(scope["path"]) or self._route(scope["path"])
        if route is None:
            await _send_error(send, 404, "Not Found")
            return
        handler, method, arguments = route
        if scope["method"] != method:
            await _send_error(send, 405, "Method Not Allowed", [(b"allow", method.encode())])
            return
        try:
            await handler(scope, receive, send, *arguments)
        except ServerError as error:
            await _send_error(send, error.http_status, str(error))
        except Disconnected:
            return
        except asyncio.CancelledError:
            # The time for an orderly end is up; only a request that still waits for its body or its outcome is told.
            await _send_error(send, 503, "the server is ending")
        except Exception:
            logger.exception("internal error while serving %s %s", scope["method"], scope["path"])
            await _send_error(send, 500, "internal error: the server's log has the details")

    def infer_target(self, url: bytes) -> Optional[InferTarget]:
        """The model's name and version if a request's target is that of an inference."""
        path = unquote(url.split(b"?", 1)[0].decode("latin-1"))
        route = self._found.get(path) or self._route(path)
        if route is None or route[0] != self._infer:
            return None
        target: InferTarget = route[2]
        if len(self.infer_targets) >= _REMEMBERED_PATHS:
            self.infer_targets.clear()
        self.infer_targets[url] = target
        return target

    def _route(self, path: str) -> Optional[Tuple[Callable[..., Awaitable[None]], str, Tuple[Any, ...]]]:
        for pattern, method, handler in self._routes:
            match = pattern.fullmatch(path)
            if match:
                groups = match.groupdict()
                version = int(groups["version"]) if groups.get("version") else None
                route = handler, method, (groups["name"], version) if groups else ()
                if len(self._found) >= _REMEMBERED_PATHS:
                    self._found.clear()
                self._found[path] = route
                return route
        return None

    # Health and metadata

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200, [], b"")

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200 if await self.core.check_ready() else 400, [], b"")

    async def _metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200, [_JSON], msgspec.json.encode(self.core.metadata()))

    async def _model_ready(self, scope: Scope, receive: Receive, send: Send, name: str, version: Optional[int]) -> None:
        try:
            await self.core.find(name, version).check_ready()
        except NotFound:
            await _send_error(send, 400, "Model version not ready")
        except ServerError as error:
            await _send_error(send, 400, f"Model version not ready: {error}")
        else:
            await _send(send, 200, [], b"")

    async def _model_metadata(self, scope: Scope, receive: Receive, send: Send, name: str, version: Optional[int]) -> None:
        model = self.core.find(name, version)
        versions = [str(number) for number in sorted(self.core.models[name])]
        body = {
            "name": name,
            "versions": versions,
            "platform": model.config.platform or model.config.backend,
            "inputs": [_describe(spec) for spec in model.inputs],
            "outputs": [_describe(spec) for spec in model.outputs],
        }
        await _send(send, 200, [_JSON], msgspec.json.encode(body))

    async def _model_config(self, scope: Scope, receive: Receive, send: Send, name: str, version: Optional[int]) -> None:
        await _send(send, 200, [_JSON], self.core.find(name, version).config_json.encode())

    # Inference

    async def _infer(self, scope: Scope, receive: Receive, send: Send, name: str, version: Optional[int]) -> None:
        model = self.core.find(name, version)
        about = InferFields.of(scope["headers"])
        if model.decoupled:
            raise Unsupported(NO_DECOUPLED)
        decoder = compression.decoder_for(about.content_encoding) if about.content_encoding else None
        # The length of a compressed body says nothing about what it holds.
        length = None if decoder else about.content_length
        body = http_infer.InferBody(model, about.header_length, length, self.limit)
        try:
            await self._read_body(receive, body, decoder)
            header, block = body.finish()
        except BaseException:
            body.abandon()
            raise
        gate = _Gate(self._loop, self.thread)
        model.submit(Request([(block, header.layout.nbytes)], header.layout.inputs, header.extras, gate.settle))
        outcome = await gate
        if isinstance(outcome, ServerError):
            raise outcome
        encoded = http_infer.encode(model, header, outcome)
        del outcome
        if about.accept_encoding:
            coding = compression.accepted(about.accept_encoding)
            if coding:
                await self._send_compressed(send, coding, encoded)
                return
        await _send_pieces(send, encoded.pieces, encoded.nbytes, encoded.json_bytes)

    async def _read_body(self, receive: Receive, body: http_infer.InferBody, decoder: Optional[compression.Decoder]) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk = message.get("body", b"")
            if decoder is None:
                body.feed(chunk)
            else:
                for piece in decoder.feed(chunk):
                    body.feed(piece)
            more = message.get("more_body", False)
        if decoder is not None:
            body.feed(decoder.finish())

    async def _send_compressed(self, send: Send, coding: str, encoded: http_infer.Encoded) -> None:
        if encoded.nbytes > _IN_EXECUTOR_BYTES:
            data = await self._loop.run_in_executor(None, compression.compress, coding, encoded.pieces)
        else:
            data = compression.compress(coding, encoded.pieces)
        await _send_pieces(send, [data], len(data), encoded.json_bytes, [(b"content-encoding", coding.encode())])


def _leading_int(value: bytes) -> int:
    """The number that a header begins with, 0 if it begins with none, as C's atoi has it (spec 6.4, recorded answers)."""
    if value.isdigit() and len(value) < 19:
        return int(value)
    match = re.match(rb"\s*([+-]?\d{1,18})", value)
    return int(match.group(1)) if match else 0


def _describe(spec: Any) -> Dict[str, Any]:
    about = {"name": spec.name, "datatype": spec.dtype.name, "shape": spec.shape}
    return {**about, "optional": True} if spec.optional else about


async def _send_error(send: Send, status: int, text: str, headers: Sequence[Tuple[bytes, bytes]] = ()) -> None:
    await _send(send, status, [_JSON, *headers], msgspec.json.encode({"error": text}))


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_pieces(
    send: Send, pieces: List[Any], nbytes: int, json_bytes: Optional[int], headers: Sequence[Tuple[bytes, bytes]] = ()
) -> None:
    """Sends a response piece by piece; each is dropped when the socket has it."""
    kind: Headers = [_JSON] if json_bytes is None else [_BINARY, (HEADER_LENGTH, b"%d" % json_bytes)]
    await send({"type": "http.response.start", "status": 200, "headers": [*kind, *headers, (b"content-length", b"%d" % nbytes)]})
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        await send({"type": "http.response.body", "body": piece, "more_body": bool(pieces)})
        del piece
