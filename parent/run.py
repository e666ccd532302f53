"""``stublet serve``: from options to an exit status."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Optional, Set

import uvloop

from .cli.commands import EXIT_FAILED, EXIT_OK
from .core import Core
from .descriptors import raise_limit
from .fork_server import ForkServer
from .http.front_end import HttpFrontEnd
from .http.protocol import ForwardingProtocol, InferProtocol
from .http.server import HttpServer
from .libc import keep_large_blocks
from .metrics.server import MetricsServer
from .options import OptionError, ServerOptions
from .repository import RepositoryError
from .shutdown import OVERDUE_SECONDS, clients_seconds
from .spawner import Spawner
from .status_table import print_status
from .supervision.dump import DumpService
from .tls import server_context

if TYPE_CHECKING:
    from .grpc.server import GrpcServer

logger = logging.getLogger(__name__)

_YOUNG_OBJECTS = 20_000
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST_SECONDS = 1e6


def run(options: ServerOptions, fork_server: ForkServer) -> int:
    """Serves until a signal; returns the exit status."""
    keep_large_blocks()
    raise_limit()
    try:
        return uvloop.run(_Run(options, Spawner(fork_server)).main())
    except (OptionError, RepositoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _settle_garbage_collection() -> None:
    """What was loaded stays: it need not be looked at again. And with thousands of requests in flight a young object is not garbage
    after 700 allocations."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


class _Run:
    def __init__(self, options: ServerOptions, spawner: Spawner) -> None:
        self._options = options
        self._core = Core(options, spawner)
        self._http: Optional[HttpServer] = None
        self._grpc: Optional[GrpcServer] = None
        self._metrics: Optional[MetricsServer] = None
        self._dump = DumpService(self._core)
        self._stop = asyncio.Event()

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for signum in _SIGNALS:
            loop.add_signal_handler(signum, self._on_signal, signum)
        await self._dump.start()
        try:
            self._listen()
            await self._until_stopped(asyncio.ensure_future(self._core.start(self._listen_for_grpc())))
            if self._core.failures and self._options.exit_on_error and not self._stop.is_set():
                print_status(self._core.status())
                return EXIT_FAILED
            if not self._stop.is_set():
                self._announce()
                _settle_garbage_collection()
                await self._stop.wait()
            return EXIT_OK
        finally:
            await self._end()
            if self._core.failures and self._options.exit_on_error:
                for name, reason in self._core.failures.items():
                    print(f"error: failed to load '{name}': {reason}", file=sys.stderr)

    def _listen(self) -> None:
        options = self._options
        if options.allow_http:
            tls = server_context(options.http_tls, "--http")
            protocol = ForwardingProtocol if options.http_header_forward_pattern else InferProtocol
            front_end = HttpFrontEnd(self._core)
            self._http = HttpServer(front_end, options.http_address, options.http_port, protocol, tls=tls, limits=options.http_limits)
            self._http.start()
        if options.allow_metrics:
            self._metrics = MetricsServer(self._core.metrics_text, options.metrics_address or options.http_address, options.metrics_port)
            self._metrics.start()

    async def _listen_for_grpc(self) -> None:
        if not self._options.allow_grpc:
            return
        # grpcio's other way to wait for connections hands each event from thread to thread, which takes a third of a small call's time.
        os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
        loop = asyncio.get_running_loop()
        # The import takes as long as the start of a model, which goes on meanwhile.
        module = await loop.run_in_executor(None, importlib.import_module, ".grpc.server", __package__)
        self._grpc = module.GrpcServer(self._core, self._options.grpc, self._options.http_address)
        self._grpc.start()

    async def _until_stopped(self, start: asyncio.Future[None]) -> None:
        stop = asyncio.ensure_future(self._stop.wait())
        waiting: Set[asyncio.Future[Any]] = {start, stop}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if start.done():
            start.result()
        else:
            start.cancel()

    def _announce(self) -> None:
        print_status(self._core.status())
        http, grpc, metrics = (server.url if server else "off" for server in (self._http, self._grpc, self._metrics))
        print(f"HTTP     {http}\ngRPC     {grpc}\nmetrics  {metrics}", flush=True)
        serving = sum(any(m.ready for m in versions.values()) for versions in self._core.models.values())
        logger.info("serving %d model%s; Ctrl-C ends", serving, "" if serving == 1 else "s")

    def _on_signal(self, signum: int) -> None:
        loop = asyncio.get_running_loop()
        for one in _SIGNALS:
            # Not by the loop, which may be what does not go on.
            loop.remove_signal_handler(one)
            signal.signal(one, _end_at_once)
        logger.info("%s: finishing what runs, then ending (again: end at once)", signal.Signals(signum).name)
        self._stop.set()

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = self._options.exit_timeout_secs
        # A thread of its own, which needs nothing of Python's: whatever hangs, with stacks in the log.
        faulthandler.dump_traceback_later(min(seconds, _LONGEST_SECONDS) + OVERDUE_SECONDS, exit=True)
        deadline = loop.time() + seconds
        self._core.begin_end()
        servers = [server for server in (self._http, self._grpc, self._metrics) if server is not None]
        await asyncio.gather(*(server.stop(clients_seconds(seconds)) for server in servers))
        await self._core.stop(max(deadline - loop.time(), 0))
        self._dump.stop()


def _end_at_once(signum: int, _frame: object) -> None:
    """Whatever runs. The fork server sees its socket close, ends the stubs and removes what is temporary."""
    os._exit(128 + signum)
