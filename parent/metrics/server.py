"""``GET /metrics`` on a port of its own, for Prometheus (spec 7)."""

from __future__ import annotations

import logging
from typing import Any, Awaitable, Callable, Dict, List, Tuple

from ..http.server import HttpServer
from .exposition import CONTENT_TYPE

logger = logging.getLogger(__name__)

PATH = "/metrics"

_PLAIN = "text/plain; charset=utf-8"


class MetricsServer(HttpServer):
    """Serves what ``text`` returns, which is called in the event loop for each request.

    Raises (constructor):
        OptionError: the address cannot be listened on.
    """

    def __init__(self, text: Callable[[], bytes], address: str, port: int) -> None:
        super().__init__(_EndPoint(text), address, port, what="metrics")
        self.url += PATH


class _EndPoint:
    """The ASGI application."""

    def __init__(self, text: Callable[[], bytes]) -> None:
        self._text = text

    async def __call__(self, scope: Dict[str, Any], _receive: Any, send: Callable[[Dict[str, Any]], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = self._answer(scope["method"], scope["path"])
        headers: List[Tuple[bytes, bytes]] = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, method: str, path: str) -> Tuple[int, str, bytes]:
        """Status, content type and body."""
        if path != PATH:
            return 404, _PLAIN, b"Not Found\n"
        if method not in ("GET", "HEAD"):
            return 405, _PLAIN, b"Method Not Allowed\n"
        try:
            return 200, CONTENT_TYPE, self._text()
        except Exception:
            logger.exception("internal error while collecting metrics")
            return 500, _PLAIN, b"internal error: the server's log has the details\n"
