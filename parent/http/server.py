"""uvicorn around an ASGI application: sockets, keep-alive, flow control, graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from functools import partial
from typing import Any, Callable, Iterator, List, Optional, Set, Type

import uvicorn

from ..options import OptionError
from .bounded import BoundedProtocol
from .door import Door
from .limits import HttpLimits

_BACKLOG = 4096
_DEFAULT_LIMITS = HttpLimits()


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command line's: it stops more than HTTP."""
        yield


class HttpServer:
    """Serves an application on one address.

    Args:
        application: the ASGI application.
        address: an IP address or a name, to listen on.
        port: 0 takes a free one; the attribute says which.
        protocol: uvicorn's class for a connection.
        what: what is served, for errors.
        tls: for encrypted connections only, from ``tls.server_context``.
        limits: on what clients may take.

    Raises (constructor):
        OptionError: the address cannot be listened on.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        address: str,
        port: int,
        protocol: Type[BoundedProtocol] = BoundedProtocol,
        what: str = "HTTP",
        tls: Optional[ssl.SSLContext] = None,
        limits: HttpLimits = _DEFAULT_LIMITS,
    ) -> None:
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.create_server((address, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            # The text of the error itself repeats the address; a name that does not resolve has no errno of the system's.
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            raise OptionError(f"cannot listen for {what} on {address}:{port}: {why}") from error
        self.port: int = self._socket.getsockname()[1]
        host = f"[{address}]" if ":" in address else address
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._door = Door(limits, what)
        config = uvicorn.Config(
            application,
            http=partial(protocol, door=self._door),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            ssl_context_factory=(lambda *_: tls) if tls else None,
        )
        self._server = _Uvicorn(config)
        self._task: Optional[asyncio.Task[Any]] = None
        self._watch: Optional[asyncio.Task[None]] = None

    @property
    def connections(self) -> Set[Any]:
        """Those that are open, of the class ``protocol``."""
        return self._server.server_state.connections

    def start(self) -> None:
        """Accepts connections from now on."""
        sockets: List[socket.socket] = [self._socket]
        self._task = asyncio.create_task(self._server.serve(sockets=sockets))
        self._watch = asyncio.create_task(self._door.watch(self.connections))

    async def stop(self, seconds: float) -> None:
        """Stops accepting, lets requests that run finish within ``seconds``, and closes every connection."""
        if self._task is None:
            self._socket.close()
            return
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]  # it may be any number
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        self._socket.close()
