"""uvicorn around the HTTP front end: sockets, keep-alive, flow control, graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, Iterator, List, Optional

import uvicorn

from .http import HttpFrontEnd
from .http_protocol import InferProtocol
from .options import OptionError

_BACKLOG = 4096
_KEEP_ALIVE_SECONDS = 600


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command line's: it stops more than HTTP."""
        yield


class HttpServer:
    """Serves the front end on one address.

    Raises (constructor):
        OptionError: the address cannot be listened on.
    """

    def __init__(self, front_end: HttpFrontEnd, address: str, port: int) -> None:
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.create_server((address, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            # The text of the error itself repeats the address; a name that does not resolve has no errno of the system's.
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            raise OptionError(f"cannot listen for HTTP on {address}:{port}: {why}") from error
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            front_end,
            http=InferProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._server = _Uvicorn(config)
        self._task: Optional[asyncio.Task[Any]] = None

    def start(self) -> None:
        """Accepts connections from now on."""
        sockets: List[socket.socket] = [self._socket]
        self._task = asyncio.create_task(self._server.serve(sockets=sockets))

    async def stop(self, seconds: float) -> None:
        """Stops accepting, lets requests that run finish within ``seconds``, and closes every connection."""
        if self._task is None:
            self._socket.close()
            return
        self._server.config.timeout_graceful_shutdown = max(1, int(seconds))
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._socket.close()
